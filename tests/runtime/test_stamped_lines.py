"""Lines of a container's log: each is told once, whole, whatever a look happens to see of it."""

from __future__ import annotations

from runtime.backends.stamped_lines import Place


def test_a_line_that_is_being_written_is_left_for_the_next_look() -> None:
    """Half of it is not told, and the whole of it is, once."""
    place = Place()
    begun = b"2026-01-01T00:00:01.000000001Z line 1\n2026-01-01T00:00:01.000000002Z li"
    assert list(place.news(begun, whole=False)) == [b"line 1\n"]
    assert list(place.news(begun + b"ne 2\n", whole=False)) == [b"line 2\n"]
    assert list(place.news(b"2026-01-01T00:00:02.000000001Z no end", whole=True)) == [b"no end"]


def test_lines_of_one_time_are_counted() -> None:
    """What was seen of a time is not told again, and what came later at the same time is."""
    place = Place()
    one, two = b"2026-01-01T00:00:01.5Z a\n", b"2026-01-01T00:00:01.5Z b\n"
    assert list(place.news(one)) == [b"a\n"]
    assert list(place.news(one + two)) == [b"b\n"]
    assert place.second == 1767225601

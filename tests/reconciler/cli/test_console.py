"""What is printed for people: sizes, times, tables, colour."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.cli import console

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (150 * 2**20, "150 MiB"),
        (2**30, "1 GiB"),
        (int(1.25 * 2**40), "1.2 TiB"),
        (2**60, "1024 PiB"),
        (-1536, "-1.5 KiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    """Bytes in binary units, three digits at most."""
    assert console.size(count) == text


@given(st.integers(0, 2**60))
def test_sizes_are_short(count: int) -> None:
    """Law: no size is wider than a column for it."""
    assert len(console.size(count)) <= len("1023.9 KiB")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0 ms"),
        (0.45, "450 ms"),
        (1, "1 s"),
        (12.34, "12.3 s"),
        (60, "1 min"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (90061, "1 d 1 h"),
        (86400 + 59, "1 d"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    """Seconds in at most two units."""
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("distance", "text"),
    [
        (timedelta(milliseconds=300), "now"),
        (timedelta(seconds=-30), "30 s ago"),
        (timedelta(minutes=3), "in 3 min"),
        (timedelta(days=30) - timedelta(seconds=5), "in 30 d"),
        (timedelta(hours=-25), "1 d ago"),
    ],
)
def test_moments(distance: timedelta, text: str) -> None:
    """A moment is told by its distance, rounded to one unit."""
    assert console.relative_time(NOW + distance, NOW) == text


def test_tables_align_by_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colour codes take no room, and no line ends in blanks."""
    monkeypatch.setattr(console, "coloured", lambda: True)
    lines = console.table(("Name", "State"), [(console.paint("a", "red"), "x"), ("longer", "")])
    assert [console._ANSI.sub("", line) for line in lines] == ["Name    State", "a       x", "longer"]
    assert "\x1b[" in lines[1]


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_colour_is_for_terminals_that_want_it(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """No colour into files and pipes, and none where the user asked for none."""
    for variable in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(variable, raising=False)
    assert console.paint("x", "red") == "x"  # pytest's output is no terminal
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert console.paint("x", "red") != "x"
    assert console.paint("x", "bold") != "x"
    assert console.paint("x", "") == "x"
    monkeypatch.setenv(name, value)
    assert console.paint("x", "red") == "x"


def test_plurals() -> None:
    """Counts agree with their nouns."""
    assert [console.plural(count, "file") for count in (0, 1, 2)] == ["0 files", "1 file", "2 files"]


def test_next_steps_are_indented(capsys: pytest.CaptureFixture[str]) -> None:
    """Steps stand below each other; without any, nothing is printed."""
    console.next_steps("", "one", "two")
    console.next_steps("")
    assert capsys.readouterr().out == "\nNext: one\n      two\n"


def test_differences_are_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Added and removed lines have their colours, context has none."""
    monkeypatch.setattr(console, "coloured", lambda: True)
    painted = list(console.diff_lines(["--- a", "+++ b", "@@ 1 @@", " same", "-old", "+new"]))
    assert painted[3] == " same"
    assert "\x1b[31m" in painted[4]
    assert "\x1b[32m" in painted[5]

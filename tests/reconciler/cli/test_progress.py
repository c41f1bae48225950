"""What a terminal shows while bytes arrive: a bar for each file, one for all, speed and time left."""

from __future__ import annotations

import io
import re

from rich.console import Console

from reconciler.cli.progress import Bars


def _shown(bars: Bars) -> list[str]:
    """The lines of the bars as they stand, without the spinner."""
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(bars._bars.get_renderable())
    return [re.sub(r"^\W+", "", line).strip() for line in console.file.getvalue().splitlines() if line.strip()]


def _bars() -> Bars:
    return Bars(Console(file=io.StringIO(), force_terminal=True, width=120))


def test_a_bar_for_each_file_and_one_for_all() -> None:
    """Each with its bytes, its speed and the time left; the one for all knows its end from the beginning."""
    bars = _bars()
    with bars:
        bars.expect({"a": 100, "b": 300})
        bars.advance("a", 50, 100)
        bars.advance("b", 30, 300)
        lines = _shown(bars)
    assert [line.split("━")[0].strip() for line in lines] == ["all, 0 of 2 files", "a", "b"]
    assert ["80/400 bytes" in lines[0], "50/100 bytes" in lines[1], "30/300 bytes" in lines[2]] == [True] * 3
    assert all(re.search(r"(\?|B/s|bytes/s) +(-:--:--|\d:\d\d:\d\d)$", line) for line in lines)


def test_a_file_that_is_there_makes_room() -> None:
    """Its bar goes, its bytes stay in the sum; and a single file needs no sum."""
    bars = _bars()
    with bars:
        bars.advance("a", 50, 100)
        assert len(_shown(bars)) == 1
        bars.advance("b", 1, 300)
        bars.advance("a", 100, 100)
        lines = _shown(bars)
    assert "all, 1 of 2 files" in lines[0] or "all, 1 of 2 files" in lines[1]
    assert len(lines) == 2
    assert any("101/400 bytes" in line for line in lines)


def test_hundreds_of_files_fit_on_a_terminal() -> None:
    """No more bars than lines; all files count in the sum; names are shown as they are."""
    bars = _bars()
    with bars:
        for number in range(300):
            bars.advance(f"[red]{number}", 1, 2)
        lines = _shown(bars)
    assert len(lines) == 13
    assert any("all, 0 of 300 files" in line and "300/600 bytes" in line for line in lines)
    assert any(line.startswith("red]0") or "[red]0" in line for line in lines)


def test_the_next_action_begins_with_no_bars() -> None:
    """What the last one left does not count."""
    bars = _bars()
    with bars:
        bars.advance("a", 50, 100)
        bars.advance("b", 50, 100)
        bars.clear()
        assert not _shown(bars)
        bars.advance("c", 1, 10)
        assert len(_shown(bars)) == 1

"""What every command prints with: colour where it helps, sizes, times, tables, and what to do next.

Only click is used, which is imported anyway: rich costs 90 ms and is for live progress alone.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

FORMAT_VERSION: Final = "1"
"""Version of the form of every `--json` document."""

_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")
_ATTRIBUTES: Final = frozenset({"bold", "dim", "underline"})
_SIZE_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_STEP: Final = 1024
_TIME_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_SOON: Final = 1
"""Seconds within which a moment is "now"."""


# --- text ---------------------------------------------------------------------------------------------------------


def coloured() -> bool:
    """Whether colour may be used: on a terminal that can, and not where NO_COLOR is set (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str) -> str:
    """A text in a colour (`green`, `red`, ...) or attribute (`bold`, `dim`), where colour may be used."""
    if not style or not coloured():
        return text
    return click.style(text, **{style: True}) if style in _ATTRIBUTES else click.style(text, fg=style)


def size(count: float) -> str:
    """Bytes for people: `1.5 GiB`. Three digits at most, so that columns stay narrow."""
    value, index = float(count), 0
    while abs(value) >= _STEP and index < len(_SIZE_UNITS) - 1:
        value /= _STEP
        index += 1
    # Below a hundred a digit after the point says something, unless it is a zero.
    digits = 0 if index == 0 or abs(value) >= 100 or value == int(value) else 1  # noqa: PLR2004
    return f"{value:.{digits}f} {_SIZE_UNITS[index]}"


def duration(seconds: float) -> str:
    """Seconds for people: `450 ms`, `12.3 s`, `2 min 5 s`, `3 d 4 h`. Two units at most."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.0f} s" if seconds == int(seconds) else f"{seconds:.1f} s"
    left = round(seconds)
    parts: list[str] = []
    for unit, name in _TIME_UNITS:
        if left >= unit or parts:
            parts.append(f"{left // unit} {name}")
            left %= unit
    return " ".join(part for part in parts[:2] if not part.startswith("0 "))


def relative_time(moment: datetime, now: datetime) -> str:
    """A moment as seen from now: `3 min ago`, `in 29 d`, `now`."""
    seconds = (moment - now).total_seconds()
    if abs(seconds) < _SOON:
        return "now"
    unit, name = next((unit, name) for unit, name in _TIME_UNITS if round(abs(seconds)) >= unit)
    rough = f"{round(abs(seconds) / unit)} {name}"
    return f"in {rough}" if seconds > 0 else f"{rough} ago"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Aligned columns, a line each; the header is bold. Colour codes do not count as width."""
    body = [list(row) for row in rows]
    widths = [max(visible(cell) for cell in column) for column in zip(header, *body, strict=True)]
    lines = [_row([paint(cell, "bold") for cell in header], widths)]
    return lines + [_row(row, widths) for row in body]


def visible(text: str) -> int:
    """Characters of a text that take room on a terminal."""
    return len(_ANSI.sub("", text))


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell + " " * (width - visible(cell)) for cell, width in zip(cells, widths, strict=True))
    return "  ".join(padded).rstrip()


def plural(count: int, one: str, many: str = "") -> str:
    """`1 file`, `2 files`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


# --- printing -----------------------------------------------------------------------------------------------------


def say(*lines: str) -> None:
    """Print lines for people."""
    for line in lines:
        click.echo(line)


def note(message: str) -> None:
    """Print a remark that does not belong to the result, on standard error."""
    click.echo(message, err=True)


def warn(message: str) -> None:
    """Print a warning on standard error."""
    click.echo(paint("warning: ", "yellow") + message, err=True)


def emit(document: Mapping[str, Any]) -> None:
    """Print a document for programs: one line, with the version of its form."""
    click.echo(json.dumps({"formatVersion": FORMAT_VERSION, **document}))


def next_steps(*steps: str) -> None:
    """Print what to do next."""
    given = [step for step in steps if step]
    if not given:
        return
    click.echo("")
    click.echo(paint("Next:", "bold") + " " + given[0])
    for step in given[1:]:
        click.echo(f"      {step}")


def diff_lines(lines: Iterable[str]) -> Iterable[str]:
    """A unified diff in its customary colours."""
    for line in lines:
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        yield paint(line, "bold" if line.startswith(("+++", "---")) else style)

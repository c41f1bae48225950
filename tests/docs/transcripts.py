"""Pages that can be run: what stands in their `console` blocks, as commands and what they print."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).parents[2] / "docs"


@dataclass(frozen=True)
class Step:
    """One command, and what it should print: `...` stands for anything, a line of it for any lines."""

    line: int
    """Where the command stands in the page."""
    command: str
    expected: str


def steps(page: Path) -> list[Step]:
    """The commands of a page, in order."""
    found: list[Step] = []
    inside = False
    for number, text in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if text.startswith("```"):
            inside = text == "```console"
        elif inside and text.startswith("$ "):
            found.append(Step(number, text[2:], ""))
        elif inside and text.startswith("> "):
            before = found.pop()
            found.append(Step(before.line, f"{before.command}\n{text[2:]}", ""))
        elif inside:
            before = found.pop()
            found.append(Step(before.line, before.command, f"{before.expected}{text}\n"))
    return found


def mentioned(page: Path) -> list[tuple[int, str]]:
    """Every `reconcile ...` command of a page: of its transcripts, its indented blocks and its running text."""
    found: list[tuple[int, str]] = []
    for number, text in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        found += [(number, command) for command in re.findall(r"`(reconcile [^`]+)`", text)]
        if code := re.match(r"(?:\$ |    )(?:sudo )?(reconcile\b[^#|;&>]*)", text):
            found.append((number, code[1].strip()))
    return found

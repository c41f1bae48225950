"""The threat model and what shows it: every name in its table is there, and every invariant has somebody to show it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.attacks.rows import ATTACKS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.partition("## Attackers")[2].partition("\n## ")[0].splitlines() if line.startswith("| ")][
    1:
]
INVARIANTS = re.findall(r"^\| (I[0-9]+) \|", TEXT, re.MULTILINE)


@cache
def names_in(path: str) -> frozenset[str]:
    """Names of the tests in a file, those in classes among them."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[3].strip()[:40])
def test_what_shows_a_row_is_there(row: str) -> None:
    """Each row names rows of the attack table, or tests, and nothing that does not exist."""
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert len(cells) == 6, row
    assert all(name in INVARIANTS for name in cells[4].split(", "))
    shown = cells[5].rstrip(" |").split(", ")
    assert shown
    for item in shown:
        if link := re.fullmatch(r"\[`(\w+)`\]\(attacks\.md\)", item):
            assert link[1] in ATTACKS
        else:
            path, _, name = item.strip("`").partition("::")
            assert name in names_in(path), item


def test_every_invariant_is_shown() -> None:
    """I1 to I11: each is what stops somebody."""
    stopping = {name for row in ROWS for name in row.split(" | ")[4].split(", ")}
    assert stopping == set(INVARIANTS) == {f"I{number}" for number in range(1, 12)}


def test_every_row_is_somebody_s() -> None:
    """The table is of attackers: none stands there without saying what it holds and wants."""
    assert len(ROWS) >= 30
    assert all(cell.strip() for row in ROWS for cell in row.strip("|").split(" | "))

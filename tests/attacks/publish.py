"""Writes docs/attacks.md from the table: `make docs`."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Final

from tests.attacks.rows import ATTACKS

PAGE: Final = Path(__file__).parents[2] / "docs" / "attacks.md"

HEAD: Final = """\
# Attack table

Written by `make docs` from `tests/attacks/`; do not edit.

`make attacks` shows every row to a real node at the command line (real git, real signatures, llama.cpp serving a tiny
model) and prints what was seen; `make test` fails unless every row ends exactly as it says here. The node serves
snapshot 5 of a network whose trust needs two of three signers.

After every row the engine is asked for a completion on its socket: *serves* means that the very instance that ran
before answers as before. A command of the attacker's would leave a file behind; none does. Now and then the node is
shown a good snapshot, which must come in force: being attacked leaves nothing behind.

The reason is that of the condition `SourceVerified` (of `Ready` where serving ends; the error's where the configuration
itself is refused). The exit code is that of `reconcile`: 3 for a refusal; 0 where one repository, or an unfinished
round of signatures, is of no use and nothing is wrong with what is in force.
"""

COLUMNS: Final = "| Attack | What is done | Attacker holds | Reason | Exit | Then |\n|---|---|---|---|---|---|\n"


def page() -> str:
    """The page."""
    parts = [HEAD]
    for group, rows in groupby(ATTACKS.values(), key=lambda attack: attack.group):
        parts.append(f"\n## {group}\n\n{COLUMNS}")
        for attack in rows:
            then = (
                ("serves, on a newer snapshot" if attack.accepts else "serves") if attack.serves else "stopped at once"
            )
            title = attack.title.replace("|", "\\|")
            parts.append(
                f"| `{attack.name}` | {title} | {attack.holds} | `{attack.reason}` | {attack.code} | {then} |\n"
            )
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

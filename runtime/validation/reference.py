"""Asks a reference implementation, in a child process: torch is never imported here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from runtime.validation.evidence import FLOOR
from schemas.errors import Incompatible, ValidationFailed
from schemas.probe import Distribution

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from schemas.ports import Processes

PROGRAM: Final = Path(__file__).with_name("reference_transformers.py")
TOP: Final = 48
"""More than an engine tells: whatever it holds for likely is then known."""
SECONDS: Final = 3600.0
DIGITS: Final = 4


def transformers_reference(
    processes: Processes, python: str, model: Path
) -> Callable[[Sequence[tuple[Sequence[int], Sequence[int]]]], list[list[Distribution]]]:
    """What says the distributions of (prompt, tokens) pairs.

    Args:
        processes: runs the child.
        python: interpreter of an environment with torch and transformers.
        model: folder with the model as they load it.
    """

    def ask(pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[Distribution]]:
        question = {"model": str(model.absolute()), "pairs": [[list(one), list(two)] for one, two in pairs], "top": TOP}
        try:
            done = processes.run(
                [python, "-I", str(PROGRAM)],
                timeout=SECONDS,
                max_output=2**28,
                stdin=json.dumps(question).encode(),
            )
        except (OSError, TimeoutError, OverflowError) as error:
            raise Incompatible(f"the reference implementation cannot be asked: {error}") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise Incompatible(f"the reference implementation failed: {said[-1][:300] if said else 'it said nothing'}")
        try:
            return [[_distribution(*row) for row in rows] for rows in json.loads(done.stdout)]
        except (ValueError, TypeError, ValidationError) as error:
            raise ValidationFailed(f"the reference implementation answered nonsense: {error}") from error

    return ask


def _distribution(ids: Any, logprobs: Any) -> Distribution:
    return Distribution(ids=tuple(ids), logprobs=tuple(round(max(value, FLOOR), DIGITS) for value in logprobs))

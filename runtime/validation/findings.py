"""What one test came to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One test's outcome, with the figure that decided."""

    test: str
    """`tokenizer`, `texts`, `weights`, `continuation`, `end`, `cache`, `sampler`, `speed`, or a task."""
    outcome: Outcome
    message: str
    """For people."""
    statistic: float | None = None
    """The figure, where the test has one."""
    threshold: float | None = None
    """What it was compared with."""
    tokens: int = 0
    """Positions that it is about."""

    def being(self, outcome: Outcome, message: str) -> Finding:
        """The same figures, judged."""
        return replace(self, outcome=outcome, message=message)

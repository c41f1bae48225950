"""When a daemon looks next when nothing wakes it, and why. It keeps count of failures, and decides nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

    from schemas.errors import ReconcileError
    from schemas.plan import Plan
    from schemas.ports import Randomness

JITTER: Final = 0.1
"""Share by which an interval varies, so that a fleet does not ask its repository in step."""

MIN_WAIT: Final = timedelta(seconds=1)
"""A hold that ends in this moment does not turn the loop into a busy one."""

MOST_BACKOFF: Final = timedelta(minutes=10)
"""Longest wait between polls of repositories that do not answer: a server that comes back meets no crowd, and a node
is at most so much behind. An interval that is longer by itself stays as it is."""


@dataclass(frozen=True, slots=True)
class Next:
    """When the next pass comes, unless something wakes the daemon."""

    at: datetime
    why: str

    def wait(self, now: datetime) -> float:
        """Seconds until then."""
        return max((self.at - now).total_seconds(), 0.0)


class Tempo:
    """Says when to look next."""

    def __init__(self, interval: float, randomness: Randomness) -> None:
        """Nothing has failed yet.

        Args:
            interval: seconds between polls.
            randomness: for jitter.
        """
        self._interval = interval
        self._randomness = randomness
        self._failures = 0

    def after(
        self, now: datetime, error: ReconcileError | None, plan: Plan | None = None, expires: datetime | None = None
    ) -> Next:
        """The next look after a pass that has just ended.

        Args:
            now: when it ended.
            error: why the pass, or asking the repositories, failed; None when it did not. What passes by itself is
                asked for at growing intervals; the count starts again with the first answer.
            plan: what would still be done.
            expires: when the snapshot in force does.
        """
        self._failures = self._failures + 1 if error is not None and error.retry == "backoff" else 0
        found = [self._poll(now)]
        if plan is not None:
            found += [
                Next(max(held.until, now + MIN_WAIT), f"{held.subject}: {held.reason}")
                for held in plan.held
                if held.until is not None
            ]
        if expires is not None and expires > now:
            found.append(Next(expires + MIN_WAIT, "the snapshot expires"))
        return min(found, key=lambda item: item.at)

    def _poll(self, now: datetime) -> Next:
        jitter = self._randomness.uniform(1 - JITTER, 1 + JITTER)
        wait = timedelta(seconds=self._interval)
        if not self._failures:
            return Next(now + wait * jitter, "the repositories are asked again")
        doublings: int = 2 ** min(self._failures, 20)
        wait = max(wait, min(wait * doublings, MOST_BACKOFF))
        why = f"the repositories are asked again, after {self._failures} failures"
        return Next(now + wait * jitter, why)

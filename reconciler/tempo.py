"""When a daemon looks next when nothing wakes it, and why. It keeps count of failures, and decides nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from reconciler.proof import retest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from reconciler.target import Choice
    from schemas.errors import ReconcileError
    from schemas.observation import Observed
    from schemas.plan import Held, Plan
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
    coming: tuple[Next, ...] = ()
    """Everything that is known to come, the first one first, this one among them; none of it comes later than said."""

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
        self,
        now: datetime,
        error: ReconcileError | None,
        plan: Plan | None = None,
        expires: datetime | None = None,
        others: Sequence[Next] = (),
    ) -> Next:
        """The next look after a pass that has just ended.

        Args:
            now: when it ended.
            error: why the pass, or asking the repositories, failed; None when it did not. What passes by itself is
                asked for at growing intervals; the count starts again with the first answer.
            plan: what would still be done.
            expires: when the snapshot in force does.
            others: what else is due at a known time: retests, the scrub.
        """
        self._failures = self._failures + 1 if error is not None and error.retry == "backoff" else 0
        found = [self._poll(now), *(item for item in others if item.at > now)]
        if plan is not None:
            found += [_until(held, held.until, now) for held in plan.held if held.until is not None]
        if expires is not None and expires > now:
            found.append(Next(expires + MIN_WAIT, "the snapshot expires"))
        coming = tuple(sorted(found, key=lambda item: (item.at, item.why)))
        return Next(coming[0].at, coming[0].why, coming)

    def _poll(self, now: datetime) -> Next:
        jitter = self._randomness.uniform(1 - JITTER, 1 + JITTER)
        wait = timedelta(seconds=self._interval)
        if not self._failures:
            return Next(now + wait * jitter, "the repositories are asked again")
        doublings: int = 2 ** min(self._failures, 20)
        wait = max(wait, min(wait * doublings, MOST_BACKOFF))
        why = f"the repositories are asked again, after {self._failures} failures"
        return Next(now + wait * jitter, why)


def retests(observed: Observed, choice: Choice) -> list[Next]:
    """When what has been proven is proven again. Pure.

    Args:
        observed: what is there, and what is remembered.
        choice: what should serve, with how often the snapshot wants each model to be tested.
    """
    target = choice.target
    spec = next((spec for spec in choice.serve if target is not None and spec.manifest.digest == target.manifest), None)
    if target is None or spec is None:
        return []
    subject = target.subject(observed.state.hardware.accelerator)
    receipts = [receipt for receipt in observed.memory.receipts if receipt.subject == subject]
    if not receipts:
        return []
    newest = max(receipts, key=lambda receipt: receipt.number)
    when = retest(newest, spec.validation.every, observed.node_id)
    return [
        Next(when.earliest, f"{target.model} is tested again in a quiet moment"),
        Next(when.latest, f"{target.model} is tested again at once"),
    ]


def _until(held: Held, until: datetime, now: datetime) -> Next:
    if held.reason == "OutsideWindow":
        return Next(max(until, now + MIN_WAIT), f"{held.subject}: its window opens")
    return Next(max(until, now + MIN_WAIT), f"{held.subject}: tried again after {held.reason}")

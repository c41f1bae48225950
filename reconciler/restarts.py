"""How soon, and how often, what ended by itself is started again: backoff, budget, and when it counts as well. Pure.

The first restart comes at once, since most ends are accidents. After that the waits double, and an engine that ends
again and again is given up for what served before it. Where there is nothing to go back to, it is tried for as long as
the node lives, at the longest wait, and the node says loudly that it needs somebody.

What is counted is remembered as a `Hold` of a subject of its own: it outlives the agent, and a start that succeeds does
not end it, as only time can tell that an engine is well. The waits are Kubernetes' (10 s, doubled, 5 min at most, over
after 10 min of running); the budget is ours.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from reconciler.memory import BACKOFF_LAST, DropHold, Note, PutHold, Reject
from schemas.memory import Hold, Rejection
from schemas.plan import CRASH_LOOPING, RESTARTING

if TYPE_CHECKING:
    from datetime import datetime

    from reconciler.memory import Change
    from schemas.memory import Memory
    from schemas.observation import Hardware, Instance
    from schemas.plan import StopInstance

FIRST: Final = timedelta(seconds=10)
LAST: Final = timedelta(minutes=5)
"""Wait before the second restart in a row, and the longest one; it doubles in between."""

WELL: Final = timedelta(minutes=10)
"""An instance that ran for so long was well: its end is the first one again."""

BUDGET: Final = 5
"""Ends in a row after which an engine is crash-looping. With the waits between, they take at least 70 s."""

SPREAD: Final = 0.1
"""Share by which a wait varies: nodes that lost their engines at one moment do not all start them at another."""

_PREFIX: Final = "restart/"


def key(spec_digest: str) -> str:
    """Under which the ends of one specification are remembered."""
    return f"{_PREFIX}{spec_digest}"


def pending(spec_digest: str, memory: Memory, now: datetime) -> Hold | None:
    """The wait before the next restart of a specification, None where there is none.

    One longer than any can be was set by a clock that has been set back since.
    """
    hold = memory.holds.get(key(spec_digest))
    return hold if hold is not None and now < hold.until <= now + LAST * (1 + SPREAD) else None


def ends(item: Instance, memory: Memory, now: datetime) -> int:
    """How many instances of its specification have ended by themselves in a row, with this one.

    Args:
        item: an instance that ended, or that is no good any more.
        memory: what is remembered of those before it.
        now: the time.
    """
    hold = memory.holds.get(key(item.spec_digest))
    if hold is None or _is_over(hold, now):
        return 1
    was_well = item.started_at is not None and now - item.started_at >= WELL
    return 1 if was_well else hold.failures + 1


def _is_over(hold: Hold, now: datetime) -> bool:
    # Longer than anything waits: what came after it did not end, or was not started for other reasons.
    return hold.until + BACKOFF_LAST <= now


def wait(failures: int) -> timedelta:
    """How long the restart after so many ends in a row waits."""
    if failures <= 1:
        return timedelta()
    doublings: int = 2 ** min(failures - 2, 20)
    return min(FIRST * doublings, LAST)


def reason(failures: int) -> str:
    """What a wait is called."""
    return CRASH_LOOPING if failures >= BUDGET else RESTARTING


def told(failures: int, why: str) -> str:
    """A wait, for people."""
    times = "once" if failures == 1 else f"{failures} times in a row"
    return f"it ended by itself {times}, last since {why}: restarts are spaced"


def after_end(
    action: StopInstance, *, hardware: Hardware, snapshot: str, share: float, now: datetime
) -> tuple[Change, ...]:
    """What is remembered once an instance that ended by itself was cleared away.

    Args:
        action: its stop, with the count of ends in a row.
        hardware: the machine, part of a subject.
        snapshot: digest of the snapshot that the plan was made for.
        share: of the wait, about 1: chance.
        now: the time.
    """
    if not action.failures:
        return ()
    if action.gives_up is None:
        message = told(action.failures, action.cause)[:4096]
        until = now + wait(action.failures) * share
        hold = PutHold(Hold(key(action.spec_digest), reason(action.failures), message, action.failures, until))
        # Said when it begins: its repetition would bury what else happens.
        said = [Note("Warning", "CrashLooping", message, action.instance)] if action.failures == BUDGET else []
        return (hold, *said)
    target = action.gives_up
    times = f"{action.failures} times in a row, last since {action.cause}"
    message = f"{target.model} ended by itself {times}: given up for what served before it"[:4096]
    subject = target.subject(hardware.accelerator)
    return (
        Reject(Rejection(subject, target.model, CRASH_LOOPING, message, now, snapshot)),
        # Whoever clears the rejection wants it tried anew.
        DropHold(key(action.spec_digest)),
        Note("Warning", "CrashLooping", message, action.instance),
    )

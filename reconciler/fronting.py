"""The front's part of the node's report."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from schemas.observation import Present
from schemas.status import FrontStatus, FrontStatusCounts

if TYPE_CHECKING:
    from runtime.interfaces import Front
    from schemas.observation import FrontSeen, Observation


def front_status(front: Front | None, seen: Observation[FrontSeen] | None) -> FrontStatus | None:
    """The front's part of the node's report.

    Args:
        front: it; None on a node without one.
        seen: how it was last found.
    """
    if front is None:
        return None
    return FrontStatus(
        socket=str(front.address),
        state=seen.value.state if isinstance(seen, Present) else "unknown",
        counts=live_counts(front),
    )


def live_counts(front: Front) -> FrontStatusCounts | None:
    """What the front is doing now; None when it does not answer."""
    counts = front.counts()
    return FrontStatusCounts(**asdict(counts)) if counts is not None else None

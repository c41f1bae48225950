"""`status.json`: what a node last said about itself, for readers without rights on its journal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from schemas.status import NodeStatus

if TYPE_CHECKING:
    from datetime import datetime

    from reconciler.state_dir import StateDir

SILENT_SECONDS: Final = 15 * 60
"""A daemon with nothing to do says so every minute, and one that asks in vain every ten."""

LONG_SECONDS: Final = 2 * 3600
"""A start may take half an hour, and says nothing meanwhile; downloads say how far they are."""


def read_status(state: StateDir) -> NodeStatus | None:
    """The published status, None when there is none or it was written by another version of the agent."""
    try:
        return NodeStatus.model_validate_json(state.status.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def silence(state: StateDir, interval: float, now: datetime) -> str:
    """For how long whoever holds a node has said nothing, where that is too long; empty where it is not.

    Args:
        state: the node's folder.
        interval: seconds between polls.
        now: the time.
    """
    status = read_status(state)
    if status is None:
        return ""
    seconds = (now - status.updated_at).total_seconds()
    step = status.plan.running if status.plan is not None else None
    if step is not None:
        # One step may take as long as its own time bound says.
        return f"{step.id} has said nothing for {seconds / 60:.0f} minutes" if seconds > LONG_SECONDS else ""
    bound = max(SILENT_SECONDS, 2 * interval)
    return f"has said nothing for {seconds / 60:.0f} minutes" if seconds > bound else ""

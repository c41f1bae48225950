"""`status.json`: what a node last said about itself, for readers without rights on its journal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.status import NodeStatus

if TYPE_CHECKING:
    from reconciler.state_dir import StateDir


def read_status(state: StateDir) -> NodeStatus | None:
    """The published status, None when there is none or it was written by another version of the agent."""
    try:
        return NodeStatus.model_validate_json(state.status.read_bytes())
    except (FileNotFoundError, ValueError):
        return None

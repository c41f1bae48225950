"""How long a change will interrupt the service: what changes of its kind took on this very node. Pure.

A kind is a strategy, an engine, a backend and a size of the model, to a factor of two: loading is what takes the time.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

from schemas.observation import PartialModel, Present
from schemas.plan import DownloadModel, RestoreModel, StartInstance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from schemas.observation import NodeState
    from schemas.plan import Action

KEPT: Final = 9
"""Measurements kept of a kind: enough for a median that one slow day does not move."""


def kind_of_change(actions: Sequence[Action], state: NodeState) -> str:
    """Of which kind an interruption is: `replace/llamacpp/docker/2^22`; empty where there is none.

    Args:
        actions: a plan's.
        state: what was observed, for the sizes of models.
    """
    start = next((action for action in actions if isinstance(action, StartInstance)), None)
    if start is None or start.strategy == "overlap":
        return ""
    target = start.target
    seen = state.models.get(target.manifest)
    size = seen.value.size if isinstance(seen, Present) and not isinstance(seen.value, PartialModel) else 0
    for action in actions:
        if isinstance(action, DownloadModel | RestoreModel) and action.manifest.digest == target.manifest:
            size = action.size
    return f"{start.strategy}/{target.engine}/{target.backend}/2^{max(size.bit_length() - 1, 0)}"


def predicted(kind: str, measured: Mapping[str, Sequence[int]]) -> int | None:
    """Milliseconds: the median of what was measured; None where nothing was."""
    known = measured.get(kind, ())
    return round(statistics.median(known)) if known else None

"""Whether a replacement may be started beside what serves. Pure.

Two at once are the exception (I3): snapshot and owner must both allow it, and both must fit provably. What cannot be
shown to fit does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.gpus import allot, needed_memory, with_headroom
from schemas.observation import Present, StoredModel
from schemas.plan import DownloadModel, RestoreModel

if TYPE_CHECKING:
    from reconciler.kinds.base import Draft, Situation
    from schemas.observation import Instance
    from schemas.target import ServingTarget


def why_not_permitted(situation: Situation, serving: Instance, target: ServingTarget) -> str:
    """Why two may not run at once, whatever room there is; empty where they may.

    Args:
        situation: what the decision is about.
        serving: what serves now.
        target: what should.
    """
    proven = {receipt.intent for receipt in situation.observed.memory.receipts}
    if situation.choice.role != "desired" or serving.intent not in proven:
        return "only what has passed its probe is kept beside its replacement"
    if serving.spec_digest == target.spec_digest:
        return "what serves failed a check"
    if not target.isolation.overlap:
        return "the snapshot does not allow two at once"
    if not situation.node.policy.overlap:
        return "the node's owner does not allow two at once"
    seen = situation.observed.state.front
    if not isinstance(seen, Present) or seen.value.intent != serving.intent or seen.value.state == "none":
        return "no front leads requests, so they could not be led over"
    return ""


def why_not_fitting(situation: Situation, draft: Draft, target: ServingTarget) -> str:
    """Why a replacement is not shown to fit beside what serves; empty where it is."""
    hardware = situation.observed.state.hardware
    needed = with_headroom(_memory(situation, draft, target))
    draft.explain(
        "runtime", f"beside what serves, {needed} bytes of memory are needed, {hardware.memory_free} are free"
    )
    if needed > hardware.memory_free:
        return "memory does not hold both"
    for gpu in allot(target, hardware).gpus:
        video = needed_memory(target, gpu)
        if not video:
            return "how much GPU memory it takes is not known"
        draft.explain("runtime", f"on {gpu.uuid}, {video} bytes are needed, {gpu.memory_free} are free")
        if video > gpu.memory_free:
            return "GPU memory does not hold both"
    return ""


def _memory(situation: Situation, draft: Draft, target: ServingTarget) -> int:
    """Bytes: the instance's own limit, what the model is said to need, or its files, whichever is most."""
    said = next((spec.requires.memory for spec in situation.choice.serve if spec.key == target.model), 0)
    seen = situation.observed.state.models.get(target.manifest)
    stored = seen.value.size if isinstance(seen, Present) and isinstance(seen.value, StoredModel) else 0
    coming = [
        action.size
        for action in draft.actions
        if isinstance(action, DownloadModel | RestoreModel) and action.manifest.digest == target.manifest
    ]
    return max(target.resources.memory, said, stored, *coming)

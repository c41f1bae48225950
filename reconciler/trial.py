"""First validations of what is installed and not served: a detour of the runtime, where the network asks for it. Pure.

An engine that holds one model can prove another one only by serving it, so what serves is stopped for it and comes
back: two swaps. That is done in a swap window, in a quiet moment, and when nothing else is to be done.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reconciler.target import withdrawn
from reconciler.windows import is_open
from schemas.observation import Present, StoredModel
from schemas.plan import Explanation

if TYPE_CHECKING:
    from datetime import datetime

    from reconciler.desired import Desired
    from reconciler.target import Choice
    from schemas.observation import Instance, Observed
    from schemas.snapshot import SnapshotDocument
    from schemas.target import ServingTarget


def detour(
    choice: Choice, desired: Desired, observed: Observed, now: datetime, *, ignore_windows: bool = False
) -> Choice:
    """The choice, or a first validation instead of it.

    Args:
        choice: what should serve.
        desired: the snapshot.
        observed: what is there.
        now: when windows and holds are judged.
        ignore_windows: a person wants changes now.
    """
    waiting = candidates(choice, desired, observed, now)
    document = desired.document
    if not waiting or document is None or choice.target is None:
        return choice
    running = {instance.spec_digest for instance in _running(observed)}
    under_way = next((target for target in waiting if target.spec_digest in running), None)
    if under_way is not None:
        return _instead(choice, under_way, "its first validation is under way")
    windows = document.spec.policy.windows
    if not (ignore_windows or windows.urgent or is_open(windows.swap, now)):
        return _explained(choice, waiting[0], "its first validation waits for a swap window")
    between = choice.target.spec_digest not in running
    if not between and observed.state.quiet is not True:
        return _explained(choice, waiting[0], "its first validation waits for a quiet moment")
    return _instead(choice, waiting[0], f"its first validation: {choice.target.model} is stopped for it and comes back")


def candidates(choice: Choice, desired: Desired, observed: Observed, now: datetime) -> tuple[ServingTarget, ...]:
    """What could be validated for the first time now, windows and quiet moments apart."""
    document = desired.document
    if document is None or not document.spec.policy.validation.installed or observed.memory.suspended:
        return ()
    serving = choice.target
    if serving is None or choice.role != "desired":
        return ()
    accelerator = observed.state.hardware.accelerator
    subject = serving.subject(accelerator)
    if not any(receipt.subject == subject for receipt in observed.memory.receipts):
        return ()
    targets = tuple(
        serving.model_copy(
            update={
                "model": spec.key,
                "manifest": spec.manifest.digest,
                "probe": spec.validation.probe,
                "gpu_memory": spec.requires.gpu_memory,
                "compute_capability": spec.requires.compute_capability,
            }
        )
        for spec in choice.serve
        if spec.manifest.digest != serving.manifest
    )
    specs = {serving.spec_digest, *(target.spec_digest for target in targets)}
    if not any(instance.spec_digest in specs for instance in _running(observed)):
        return ()  # what should serve comes first
    return tuple(target for target in targets if _may_be_tried(target, document, observed, now))


def _may_be_tried(target: ServingTarget, document: SnapshotDocument, observed: Observed, now: datetime) -> bool:
    record = observed.memory.models.get(target.manifest)
    seen = observed.state.models.get(target.manifest)
    stored = isinstance(seen, Present) and isinstance(seen.value, StoredModel) and seen.value.intact
    holds = (observed.memory.holds.get(name) for name in (target.manifest, target.spec_digest))
    held = any(hold is not None and hold.until > now for hold in holds)
    rejected = target.subject(observed.state.hardware.accelerator) in observed.memory.rejections
    return (
        record is not None
        and record.state == "Pending"
        and stored
        and not held
        and not rejected
        and not withdrawn(document, target)
    )


def _running(observed: Observed) -> list[Instance]:
    return [
        instance
        for seen in observed.state.backends.values()
        if isinstance(seen, Present)
        for instance in seen.value
        if instance.status == "running"
    ]


def _instead(choice: Choice, target: ServingTarget, why: str) -> Choice:
    return replace(_explained(choice, target, why), target=target, role="trial")


def _explained(choice: Choice, target: ServingTarget, why: str) -> Choice:
    return replace(choice, trace=(*choice.trace, Explanation(subject=target.model, decision=why)))

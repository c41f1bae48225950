"""What is proven, until when, and why no longer (I2). Pure.

`Active` is exactly "a receipt stands": `settled` says so of a record, `stale` says which receipts stand, and the
journal and the planner both ask here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from schemas.digests import digest_text
from schemas.memory import StaleReceipts
from schemas.observation import Present, Unknown
from schemas.receipt import ReceiptDocument, ReceiptSubject

if TYPE_CHECKING:
    from collections.abc import Container, Mapping
    from datetime import datetime

    from reconciler.target import Choice
    from schemas.memory import ModelState, Receipt
    from schemas.observation import Hardware, Observed
    from schemas.snapshot import SnapshotDocument
    from schemas.target import ServingTarget

PATIENCE: Final = 0.1
"""Share of the interval for which a retest waits for a quiet moment before it is overdue."""
SPREAD: Final = 0.1
"""Share of the interval over which nodes are spread, so that a fleet which was changed at once is not retested at once.
A retest is overdue after 90 to 100 % of the interval: `every` stays a promise."""


# --- states -------------------------------------------------------------------------------------------------------


def settled(state: ModelState, *, proven: bool) -> ModelState:
    """A model's state, given whether a receipt stands for it.

    What is disabled, archived or failed is so for another reason, and is left alone.
    """
    if state in ("Pending", "Active"):
        return "Active" if proven else "Pending"
    return state


# --- which receipts stand -----------------------------------------------------------------------------------------


def stale(observed: Observed, choice: Choice, document: SnapshotDocument | None) -> tuple[StaleReceipts, ...]:
    """Receipts that stand in the journal and whose subject has changed, with what changed.

    A model that is not loaded keeps its receipt while the machine and the runtime that would serve it are the same.
    What still runs keeps it until it is replaced: a swap that is under way does not take the proof from what serves.

    Args:
        observed: what is there, with the receipts that the journal counts.
        choice: what should serve.
        document: the snapshot in force, if any.
    """
    hardware = observed.state.hardware
    would = _would_serve(choice, {receipt.manifest for receipt in observed.memory.receipts})
    running = _running(observed)
    found: dict[str, StaleReceipts] = {}
    kept: set[str] = set()
    for receipt in observed.memory.receipts:
        spelled = spelled_out(receipt.content)
        cause = _withdrawn(document, spelled) or _other_machine(spelled, hardware)
        if not cause and running is not None and receipt.intent not in running:
            cause = _other_runtime(receipt, spelled, would.get(receipt.manifest), hardware)
        if cause:
            found[receipt.subject] = StaleReceipts(receipt.subject, receipt.manifest, cause)
        else:
            kept.add(receipt.subject)
    return tuple(item for subject, item in sorted(found.items()) if subject not in kept)


def current(observed: Observed, choice: Choice, document: SnapshotDocument | None) -> Observed:
    """The observation as it is once what is stale is void: what decisions are made from."""
    gone = stale(observed, choice, document)
    if not gone:
        return observed
    subjects = {item.subject for item in gone}
    memory = observed.memory
    receipts = tuple(receipt for receipt in memory.receipts if receipt.subject not in subjects)
    proven = {receipt.manifest for receipt in receipts}
    models = {
        digest: replace(record, state=settled(record.state, proven=digest in proven))
        for digest, record in memory.models.items()
    }
    return replace(observed, memory=replace(memory, receipts=receipts, models=models, stale=gone))


@lru_cache(maxsize=256)
def spelled_out(content: str) -> ReceiptSubject | None:
    """The subject of a statement, field by field; None for a receipt from before subjects were kept."""
    return ReceiptDocument.model_validate_json(content).subject if content else None


def _would_serve(choice: Choice, manifests: Container[str]) -> Mapping[str, ServingTarget]:
    """By manifest, of those that are asked about: what serves it, or would."""
    if choice.target is None:
        return {}
    runtime = choice.wanted or choice.target
    would = {
        spec.manifest.digest: runtime.model_copy(
            update={"model": spec.key, "manifest": spec.manifest.digest, "probe": spec.validation.probe}
        )
        for spec in choice.serve
        if spec.manifest.digest in manifests
    }
    return would | {choice.target.manifest: choice.target}


def _running(observed: Observed) -> frozenset[str] | None:
    """Intents of what runs; None where that cannot be seen (I3)."""
    seen = observed.state.backends.values()
    if any(isinstance(item, Unknown) for item in seen):
        return None
    return frozenset(
        instance.intent
        for item in seen
        if isinstance(item, Present)
        for instance in item.value
        if instance.status == "running"
    )


def _withdrawn(document: SnapshotDocument | None, spelled: ReceiptSubject | None) -> str:
    if document is None or spelled is None:
        return ""
    image = "sha256:" + spelled.image.partition("@sha256:")[2] if spelled.image else ""
    for entry in document.spec.withdrawn:
        if entry.digest in (spelled.manifest, image):
            return f"withdrawn by the network: {entry.reason}".removesuffix(": ")
    return ""


def _other_machine(spelled: ReceiptSubject | None, hardware: Hardware) -> str:
    if spelled is None or spelled.accelerator == hardware.accelerator:
        return ""
    if not hardware.gpus:
        # A driver that does not answer looks like a machine without GPUs: that says nothing about them.
        return "" if spelled.gpus else f"the processor is {hardware.processor}, not {spelled.processor}"
    before = {gpu.uuid: gpu for gpu in spelled.gpus}
    now = {gpu.uuid: gpu for gpu in hardware.gpus}
    changes = [f"GPU {uuid} is gone" for uuid in sorted(before.keys() - now.keys())]
    changes += [f"GPU {uuid} is new" for uuid in sorted(now.keys() - before.keys())]
    drivers = {(before[uuid].driver, now[uuid].driver) for uuid in before.keys() & now.keys()}
    changes += [f"the driver is {new}, not {old}" for old, new in sorted(drivers) if old != new]
    return "; ".join(changes) or "the GPUs are named otherwise"


def _other_runtime(
    receipt: Receipt, spelled: ReceiptSubject | None, target: ServingTarget | None, hardware: Hardware
) -> str:
    if target is None or receipt.subject == target.subject(hardware.accelerator):
        return ""
    if spelled is None:
        return "what serves it, or would, has changed since"
    if spelled.digest == target.subject(spelled.accelerator):
        return ""  # only the machine looks different, and that it cannot be seen says nothing
    return difference(spelled, ReceiptSubject.of(target, hardware))


def difference(before: ReceiptSubject, now: ReceiptSubject) -> str:
    """What is different about two subjects, for people; the machine left out."""
    names = {
        "engine": "the engine",
        "version": "the engine's version",
        "backend": "the backend",
        "image": "the image",
        "environment": "the environment",
        "probe": "the probe",
        "model": "the model's name",
        "manifest": "the model",
    }
    changes = [
        f"{what} is {getattr(now, name) or 'none'}, not {getattr(before, name) or 'none'}"
        for name, what in names.items()
        if getattr(before, name) != getattr(now, name)
    ]
    for name, what in (("engine_args", "engineArgs"), ("isolation", "isolation"), ("resources", "resources")):
        old, new = getattr(before, name), getattr(now, name)
        changes += [
            f"{what}.{key} is {new.get(key, 'absent')}, not {old.get(key, 'absent')}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
    return "; ".join(changes)[:4096] or "what serves it, or would, has changed"


# --- how long -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Retest:
    """When a receipt wants to be renewed."""

    earliest: datetime
    """From here on in a quiet moment."""
    latest: datetime
    """From here on at once."""


def retest(receipt: Receipt, every: int, node_id: str) -> Retest:
    """When the next retest is made.

    Args:
        receipt: the newest receipt of what serves.
        every: the interval, seconds.
        node_id: spreads the nodes of a network; the same node always comes at the same point of the interval.
    """
    interval = timedelta(seconds=every)
    drawn = int(digest_text(f"retest/1|{node_id}|{receipt.manifest}")[-8:], 16) / 2**32
    latest = receipt.issued_at + interval * (1 - SPREAD + SPREAD * drawn)
    return Retest(earliest=latest - interval * PATIENCE, latest=latest)

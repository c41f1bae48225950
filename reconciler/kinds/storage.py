"""Where models lie: what moves to cold storage, what is removed, and what a crash left lying about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reconciler.kinds.base import Kind
from reconciler.memory import DropHold, ForgetModel, Note, model_state
from schemas.observation import ArchivedModel, Present, StoredModel, Unknown
from schemas.plan import Action, ArchiveModel, RemoveLeftover, RemoveModel, SweepStore, VerifyModel

if TYPE_CHECKING:
    from reconciler.desired import Desired
    from reconciler.kinds.base import Changes, Context, Draft, Situation
    from reconciler.target import Choice
    from schemas.observation import ModelSeen, Observed
    from schemas.snapshot import ModelSpec, SnapshotDocument


def diff(situation: Situation, draft: Draft) -> None:
    """Plan moves to cold storage, and the removal of what is not listed and of what nobody can see."""
    document = situation.desired.document
    if document is not None and situation.desired.verified:
        _archive(situation, draft, document)
        _remove_unlisted(situation, draft, document)
    if situation.observed.state.residue:
        size = situation.observed.state.residue
        draft.actions.append(SweepStore(id="sweep/models", cause="left over from an interruption", size=size))


# --- cold storage -------------------------------------------------------------------------------------------------


def _archive(situation: Situation, draft: Draft, document: SnapshotDocument) -> None:
    kept = in_use(situation.choice, situation.observed)
    for spec in document.spec.models:
        seen = _seen(situation.observed, spec.manifest.digest)
        if spec.state != "archived" or not isinstance(seen, StoredModel):
            continue
        if spec.manifest.digest in kept:
            draft.explain(spec.key, "listed as archived; stays while it serves, or is what this node would go back to")
        elif not _is_held(situation, draft, spec) and not _is_checked(draft, spec):
            draft.actions.append(
                ArchiveModel(
                    id=f"archive/{spec.key}",
                    cause="the snapshot lists it as archived",
                    model=spec.key,
                    manifest=spec.manifest,
                    size=seen.size,
                )
            )


def _is_checked(draft: Draft, spec: ModelSpec) -> bool:
    """Whether the model is hashed in this very plan: what comes of that is for the next round."""
    return any(isinstance(action, VerifyModel) and action.model == spec.key for action in draft.actions)


def _is_held(situation: Situation, draft: Draft, spec: ModelSpec) -> bool:
    hold = situation.observed.memory.holds.get(spec.manifest.digest)
    if hold is None or hold.until <= situation.now:
        return False
    draft.hold(spec.key, hold.reason, hold.message, hold.until)
    return True


# --- removal ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Unlisted:
    """Something in the store that the snapshot does not list, and that nothing here needs."""

    name: str
    """The model's key, or its manifest where nobody knows more."""
    manifest: str
    what: str
    size: int
    """Bytes that its removal gives back."""
    seconds: float
    """Running time for which it was not listed."""
    recorded: bool
    """Whether the journal has a record of it."""


def unlisted(desired: Desired, observed: Observed, kept: frozenset[str]) -> tuple[Unlisted, ...]:
    """What is not listed, whatever its grace.

    Args:
        desired: the snapshot.
        observed: what is there, and what is remembered.
        kept: manifests that are needed here although they may not be listed.
    """
    if desired.document is None:
        return ()
    keep = kept | {spec.manifest.digest for spec in desired.document.spec.models}
    found = []
    for digest, record in sorted(observed.memory.models.items(), key=lambda item: item[1].key):
        if digest not in keep:
            size = _own(_seen(observed, digest)) or record.size
            found.append(Unlisted(record.key, digest, "a model", size, record.unlisted_for, recorded=True))
    for digest, seconds in sorted(observed.memory.leftovers.items()):
        seen = _seen(observed, digest)
        if digest not in keep and digest not in observed.memory.models and seen is not None:
            found.append(Unlisted(digest, digest, _what(seen), _own(seen), seconds, recorded=False))
    return tuple(found)


def in_use(choice: Choice, observed: Observed) -> frozenset[str]:
    """Manifests that serve, should serve, or are what this node would go back to."""
    good = observed.memory.last_known_good
    targets = (choice.target, choice.wanted, good.target if good else None)
    return frozenset(target.manifest for target in targets if target is not None)


def _remove_unlisted(situation: Situation, draft: Draft, document: SnapshotDocument) -> None:
    if not document.spec.models and not document.spec.policy.gc.allow_empty:
        draft.explain("models", "the snapshot lists no models, and gc.allowEmpty is off: nothing is removed")
        return
    if why := _why_unknown(situation):
        draft.explain("models", f"{why}: nothing is removed")
        return
    kept = in_use(situation.choice, situation.observed)
    for item in unlisted(situation.desired, situation.observed, kept):
        spent = f"{item.seconds:.0f} s of running time"
        if item.seconds < document.spec.policy.gc.grace:
            draft.explain(item.name, f"{item.what}, not listed; kept for its grace ({spent})")
        elif item.recorded:
            draft.actions.append(
                RemoveModel(
                    id=f"remove/{item.name}",
                    cause=f"not listed for {spent}",
                    model=item.name,
                    manifest=item.manifest,
                    size=item.size,
                )
            )
        else:
            draft.actions.append(
                RemoveLeftover(
                    id=f"remove/{item.name}",
                    cause=f"{item.what}, not listed for {spent}",
                    manifest=item.manifest,
                    size=item.size,
                )
            )


def _why_unknown(situation: Situation) -> str:
    """Why it cannot be told what may be served from the store just now; empty where it can."""
    good = situation.observed.memory.last_known_good
    targets = (situation.choice.target, situation.choice.wanted, good.target if good else None)
    known = {target.spec_digest for target in targets if target is not None}
    for name, seen in sorted(situation.observed.state.backends.items()):
        if isinstance(seen, Unknown):
            return f"{name} may serve any model, and cannot be seen"
        if isinstance(seen, Present):
            for item in seen.value:
                if item.status == "running" and item.spec_digest not in known:
                    return f"{item.name} runs, and which model it serves is not remembered"
    return ""


def _seen(observed: Observed, digest: str) -> ModelSeen | None:
    seen = observed.state.models.get(digest)
    return seen.value if isinstance(seen, Present) else None


def _own(seen: ModelSeen | None) -> int:
    return seen.own if seen is not None else 0


def _what(seen: ModelSeen) -> str:
    if isinstance(seen, StoredModel):
        return "a model without a record"
    if isinstance(seen, ArchivedModel):
        return "a model without a record, in cold storage"
    return "a quarantined model" if seen.quarantined else "an unfinished download"


# --- doing --------------------------------------------------------------------------------------------------------


def perform(action: Action, context: Context) -> Changes:
    """Carry out one action on the store."""
    store, ports = context.adapters.store, context.adapters.ports
    if isinstance(action, ArchiveModel):
        model = context.adapters.documents.model(action.manifest.digest)
        store.archive(model, progress=context.adapters.progress, stop=ports.stop)
        put = model_state(
            context.memory,
            manifest=action.manifest.digest,
            key=action.model,
            state="Archived",
            cause=action.cause,
            size=action.size,
            now=ports.clock.now(),
        )
        note = Note("Normal", "ModelArchived", f"{action.model} was moved to cold storage", subject=action.model)
        return (put, DropHold(action.manifest.digest), note)
    if isinstance(action, RemoveModel):
        store.remove(action.manifest)
        note = Note("Normal", "ModelRemoved", f"{action.model} was removed: {action.cause}", subject=action.model)
        return (ForgetModel(action.manifest), note)
    if isinstance(action, RemoveLeftover):
        store.remove(action.manifest)
        note = Note("Normal", "LeftoverRemoved", f"{action.manifest} was removed: {action.cause}")
        return (ForgetModel(action.manifest), note)
    if isinstance(action, SweepStore):
        store.sweep()
        return (Note("Normal", "StoreSwept", f"{action.size} bytes were removed: {action.cause}"),)
    raise TypeError(f"not an action on the store: {action.kind}")


KIND = Kind("storage", (ArchiveModel, RemoveModel, RemoveLeftover, SweepStore), diff, perform)

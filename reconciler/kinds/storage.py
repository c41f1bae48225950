"""Where models lie: what moves to cold storage, what is removed, and what a crash left lying about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.kinds.base import Kind
from reconciler.memory import DropHold, ForgetModel, Note, model_state
from schemas.observation import ArchivedModel, Present, StoredModel
from schemas.plan import Action, ArchiveModel, RemoveLeftover, RemoveModel, SweepStore, VerifyModel

if TYPE_CHECKING:
    from reconciler.kinds.base import Changes, Context, Draft, Situation
    from schemas.observation import ModelSeen
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
    kept = _in_use(situation)
    for spec in document.spec.models:
        seen = _seen(situation, spec.manifest.digest)
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


def _remove_unlisted(situation: Situation, draft: Draft, document: SnapshotDocument) -> None:
    listed = {spec.manifest.digest for spec in document.spec.models}
    if not listed and not document.spec.policy.gc.allow_empty:
        draft.explain("models", "the snapshot lists no models, and gc.allowEmpty is off: nothing is removed")
        return
    kept = listed | _in_use(situation)
    grace = document.spec.policy.gc.grace
    memory = situation.observed.memory
    for digest, record in sorted(memory.models.items(), key=lambda item: item[1].key):
        if digest in kept:
            continue
        if record.unlisted_for < grace:
            draft.explain(record.key, f"not listed; kept for its grace ({record.unlisted_for:.0f} s of running time)")
            continue
        draft.actions.append(
            RemoveModel(
                id=f"remove/{record.key}",
                cause=f"not listed for {record.unlisted_for:.0f} s of running time",
                model=record.key,
                manifest=digest,
                size=_own(_seen(situation, digest)) or record.size,
            )
        )
    for digest, seconds in sorted(memory.leftovers.items()):
        seen = _seen(situation, digest)
        if digest in kept or digest in memory.models or seen is None:
            continue
        what = _what(seen)
        if seconds < grace:
            draft.explain(digest, f"{what}, not listed; kept for its grace ({seconds:.0f} s of running time)")
            continue
        draft.actions.append(
            RemoveLeftover(
                id=f"remove/{digest}",
                cause=f"{what}, not listed for {seconds:.0f} s of running time",
                manifest=digest,
                size=_own(seen),
            )
        )


def _in_use(situation: Situation) -> set[str]:
    good = situation.observed.memory.last_known_good
    targets = (situation.choice.target, situation.choice.wanted, good.target if good else None)
    return {target.manifest for target in targets if target is not None}


def _seen(situation: Situation, digest: str) -> ModelSeen | None:
    seen = situation.observed.state.models.get(digest)
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

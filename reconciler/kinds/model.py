"""Models: what is fetched, brought back, checked and disabled, and the states that the network knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler import drift
from reconciler.kinds.base import Kind, waits
from reconciler.kinds.runtime import serving_instance
from reconciler.memory import Change, DropCheck, DropHold, Note, PutModel, VoidReceipts, model_state
from schemas.base import FileRef
from schemas.observation import Absent, ArchivedModel, PartialModel, Present, StoredModel, Unknown
from schemas.plan import Action, DownloadModel, RestoreModel, SetModelState, VerifyModel

if TYPE_CHECKING:
    from reconciler.kinds.base import Changes, Context, Draft, Situation
    from schemas.memory import ModelRecord, ModelState
    from schemas.observation import ModelSeen
    from schemas.snapshot import DesiredModelState, ModelSpec

_DISABLED: Final[dict[DesiredModelState, ModelState]] = {"inactive": "Inactive", "archived": "Archived"}


def diff(situation: Situation, draft: Draft) -> None:
    """Plan downloads and checks of what serves here, the care of what else is here, and state changes."""
    _stage(situation, draft)
    _care(situation, draft)
    _states(situation, draft)


# --- staging ------------------------------------------------------------------------------------------------------


def _stage(situation: Situation, draft: Draft) -> None:
    needed = list(situation.choice.serve)
    target = situation.choice.target
    for spec in needed:
        _stage_model(situation, draft, spec.key, spec.manifest, spec.sources)
    if target is not None and target.manifest not in {spec.manifest.digest for spec in needed}:
        # The last known good of an older snapshot: its bytes are here, and are checked like any others.
        document = situation.desired.document
        specs = document.spec.models if document is not None else ()
        sources = next((spec.sources for spec in specs if spec.manifest.digest == target.manifest), ())
        _stage_model(situation, draft, target.model, FileRef(path="models", digest=target.manifest), sources)


def _stage_model(situation: Situation, draft: Draft, key: str, manifest: FileRef, sources: tuple[str, ...]) -> None:
    seen = situation.observed.state.models.get(manifest.digest, Absent())
    if isinstance(seen, Unknown):
        draft.hold(key, "StoreUnavailable", seen.reason)
        _block_if_target(situation, draft, manifest.digest)
        return
    value = seen.value if isinstance(seen, Present) else None
    action: Action
    if isinstance(value, StoredModel):
        doubt = _doubt(situation, value)
        if not doubt:
            draft.explain(key, "installed, unchanged since it was verified")
            return
        action = VerifyModel(id=f"verify/{key}", cause=doubt, model=key, manifest=manifest, size=value.size)
        draft.explain(key, f"{doubt}: hashed again before use")
    elif isinstance(value, ArchivedModel):
        action = RestoreModel(
            id=f"restore/{key}",
            cause="it is in cold storage, and is no longer listed as archived",
            model=key,
            manifest=manifest,
            size=value.size,
            room=situation.observed.state.room.get(manifest.digest, value.size),
            sources=sources,
        )
        draft.explain(key, "in cold storage: brought back without a download")
    elif manifest.digest in situation.choice.unfit:
        draft.explain(key, "not fetched: this machine cannot run it")
        return
    else:
        action = _download(situation, key, manifest, sources, value)
    _add_staging(situation, draft, action, key, manifest.digest)


def _doubt(situation: Situation, seen: StoredModel) -> str:
    """Why a stored model is hashed again; empty where nothing speaks for it."""
    asked = situation.observed.memory.checks.get(seen.manifest, "")
    if seen.intact:
        return asked
    changed = drift.cause(seen.changed) if seen.changed else "files changed since they were verified"
    return seen.doubt or asked or changed


def _download(
    situation: Situation, key: str, manifest: FileRef, sources: tuple[str, ...], seen: PartialModel | None
) -> DownloadModel:
    size = _size(situation, manifest.digest)
    kept = seen.verified_bytes if seen is not None else 0
    to_fetch = situation.observed.state.missing.get(manifest.digest, size)
    if seen is not None and seen.quarantined:
        cause = f"repairs what went bad; {size - to_fetch} bytes of it are still good"
    else:
        cause = f"continues after {kept} bytes" if kept else "not installed"
    return DownloadModel(
        id=f"download/{key}",
        cause=cause,
        model=key,
        manifest=manifest,
        size=size,
        to_fetch=to_fetch,
        room=situation.observed.state.room.get(manifest.digest, to_fetch),
        sources=sources,
    )


def _care(situation: Situation, draft: Draft) -> None:
    """What is listed and here, and is not needed now: kept whole, and where the snapshot wants it."""
    document = situation.desired.document
    if document is None or not situation.desired.verified:
        return
    needed = {spec.manifest.digest for spec in situation.choice.serve}
    if situation.choice.target is not None:
        needed.add(situation.choice.target.manifest)
    for spec in document.spec.models:
        seen = situation.observed.state.models.get(spec.manifest.digest)
        if spec.manifest.digest in needed or not isinstance(seen, Present):
            continue
        if _wants_care(situation, spec, seen.value):
            _stage_model(situation, draft, spec.key, spec.manifest, spec.sources)


def _wants_care(situation: Situation, spec: ModelSpec, seen: ModelSeen) -> bool:
    if isinstance(seen, StoredModel):
        return bool(_doubt(situation, seen))
    if isinstance(seen, ArchivedModel):
        return spec.state != "archived"
    # What went bad is repaired; a download that nobody needs any more waits.
    return seen.quarantined


def _add_staging(situation: Situation, draft: Draft, action: Action, key: str, digest: str) -> None:
    hold = situation.observed.memory.holds.get(digest)
    asked = isinstance(action, VerifyModel) and digest in situation.observed.memory.checks
    if hold is not None and hold.until > situation.now and not asked:
        draft.hold(key, hold.reason, f"{hold.message} ({_attempts(hold.failures)})", hold.until)
        _block_if_target(situation, draft, digest)
        return
    if isinstance(action, VerifyModel) and not asked and _is_given_up(situation, draft, action):
        return
    if not isinstance(action, VerifyModel) and waits(situation, draft, "stage", key, "staging waits for its window"):
        _block_if_target(situation, draft, digest)
        return
    draft.actions.append(action)
    if _is_target(situation, digest):
        draft.staging.append(action.id)


def _is_given_up(situation: Situation, draft: Draft, action: VerifyModel) -> bool:
    """Whether somebody keeps changing a model's files, and nothing waits for another hashing: what serves goes on."""
    seen = situation.observed.state.models.get(action.manifest.digest)
    changed = seen.value.changed if isinstance(seen, Present) and isinstance(seen.value, StoredModel) else ()
    held = drift.spent(situation, action.model, changed)
    if held is None or serving_instance(situation) is None:
        return False
    draft.held.append(held)
    _block_if_target(situation, draft, action.manifest.digest)
    return True


def _is_target(situation: Situation, digest: str) -> bool:
    return situation.choice.target is not None and situation.choice.target.manifest == digest


def _block_if_target(situation: Situation, draft: Draft, digest: str) -> None:
    if _is_target(situation, digest):
        draft.blocked = True


def _size(situation: Situation, digest: str) -> int:
    manifest = situation.desired.manifests.get(digest)
    return manifest.size if manifest is not None else 0


def _attempts(failures: int) -> str:
    return "failed once" if failures == 1 else f"failed {failures} times"


# --- states -------------------------------------------------------------------------------------------------------


def _states(situation: Situation, draft: Draft) -> None:
    if situation.desired.document is None:
        return
    listed = {spec.manifest.digest: spec for spec in situation.desired.document.spec.models}
    serving = situation.choice.target.manifest if situation.choice.target else ""
    for digest, record in sorted(situation.observed.memory.models.items(), key=lambda item: item[1].key):
        spec = listed.get(digest)
        if spec is None or digest == serving:
            continue
        after = _settled(situation, spec, record)
        if after != record.state:
            draft.actions.append(
                SetModelState(
                    id=f"state/{record.key}",
                    cause=f"the snapshot lists it as {spec.state}",
                    model=record.key,
                    manifest=digest,
                    before=record.state,
                    after=after,
                )
            )


def _settled(situation: Situation, spec: ModelSpec, record: ModelRecord) -> ModelState:
    if spec.state in _DISABLED:
        return _DISABLED[spec.state]
    if record.state in _DISABLED.values():
        proven = any(receipt.manifest == record.manifest for receipt in situation.observed.memory.receipts)
        return "Active" if proven and record.state == "Inactive" else "Pending"
    return record.state


# --- doing --------------------------------------------------------------------------------------------------------


def perform(action: Action, context: Context) -> Changes:
    """Carry out one action on a model."""
    adapters = context.adapters
    now = adapters.ports.clock.now()
    if isinstance(action, DownloadModel):
        return _acquired(action, context, "downloaded and verified", "ModelInstalled")
    if isinstance(action, RestoreModel):
        return _acquired(action, context, "brought back from cold storage and verified", "ModelRestored")
    if isinstance(action, VerifyModel):
        model = adapters.documents.model(action.manifest.digest)
        adapters.store.verify(model, progress=adapters.progress, stop=adapters.ports.stop)
        note = Note("Normal", "ModelVerified", f"{action.model} was hashed again: {action.cause}", subject=action.model)
        return (DropHold(action.manifest.digest), DropCheck(action.manifest.digest), note)
    if isinstance(action, SetModelState):
        change = model_state(
            context.memory,
            manifest=action.manifest,
            key=action.model,
            state=action.after,
            cause=action.cause,
            size=0,
            now=now,
        )
        return (change,)
    raise TypeError(f"not an action on models: {action.kind}")


def _acquired(action: DownloadModel | RestoreModel, context: Context, cause: str, reason: str) -> tuple[Change, ...]:
    """Bring a model into the store, from wherever its bytes are; what is held against sources goes on record."""
    adapters = context.adapters
    model = adapters.documents.model(action.manifest.digest)
    sources = context.sources.get(action.manifest.digest, action.sources)
    remarks = adapters.store.acquire(model, sources, progress=adapters.progress, stop=adapters.ports.stop)
    blamed = tuple(Note("Warning", "SourceBlamed", remark, subject=action.model) for remark in remarks)
    return (*_installed(action, context, cause, reason), *blamed)


def _installed(action: DownloadModel | RestoreModel, context: Context, cause: str, reason: str) -> tuple[Change, ...]:
    put: PutModel = model_state(
        context.memory,
        manifest=action.manifest.digest,
        key=action.model,
        state="Pending",
        cause=cause,
        size=action.size,
        now=context.adapters.ports.clock.now(),
        new_bytes=True,
    )
    note = Note("Normal", reason, f"{action.model} was {cause}", subject=action.model)
    changes: Changes = (put, DropHold(action.manifest.digest), note)
    if isinstance(action, DownloadModel):
        # Bytes that come back from cold storage are the ones that were proven; others have proven nothing.
        return (VoidReceipts(action.manifest.digest, "its bytes were fetched again"), *changes)
    return changes


KIND = Kind("model", (DownloadModel, RestoreModel, VerifyModel, SetModelState), diff, perform)

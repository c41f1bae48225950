"""Models: what is fetched, checked, disabled and removed, and the states that the network knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.kinds.base import Kind, waits
from reconciler.memory import Change, DropHold, ForgetModel, Note, PutModel, model_state
from schemas.observation import Absent, PartialModel, Present, StoredModel, Unknown
from schemas.plan import Action, DownloadModel, RemoveModel, SetModelState, VerifyModel
from schemas.snapshot import FileRef

if TYPE_CHECKING:
    from reconciler.kinds.base import Changes, Context, Draft, Situation
    from schemas.observation import ModelRecord, ModelState
    from schemas.snapshot import DesiredModelState, ModelSpec
    from schemas.target import ServingTarget

_DISABLED: Final[dict[DesiredModelState, ModelState]] = {"inactive": "Inactive", "archived": "Archived"}


def diff(situation: Situation, draft: Draft) -> None:
    """Plan downloads and checks of what serves here, state changes of what is listed, removal of what is not."""
    _stage(situation, draft)
    _states(situation, draft)
    _remove_unlisted(situation, draft)


# --- staging ------------------------------------------------------------------------------------------------------


def _stage(situation: Situation, draft: Draft) -> None:
    needed = list(situation.choice.serve)
    target = situation.choice.target
    for spec in needed:
        _stage_model(situation, draft, spec.key, spec.manifest, spec.sources)
    if target is not None and target.manifest not in {spec.manifest.digest for spec in needed}:
        # The last known good of an older snapshot: its bytes are here, and are checked like any others.
        _stage_model(situation, draft, target.model, FileRef(path="models", digest=target.manifest), ())


def _stage_model(situation: Situation, draft: Draft, key: str, manifest: FileRef, sources: tuple[str, ...]) -> None:
    seen = situation.observed.state.models.get(manifest.digest, Absent())
    if isinstance(seen, Unknown):
        draft.hold(key, "StoreUnavailable", seen.reason)
        _block_if_target(situation, draft, manifest.digest)
        return
    if isinstance(seen, Present) and isinstance(seen.value, StoredModel):
        if seen.value.intact:
            draft.explain(key, "installed, unchanged since it was verified")
            return
        action: Action = VerifyModel(
            id=f"verify/{key}",
            cause="files changed since they were verified",
            model=key,
            manifest=manifest,
            size=seen.value.size,
        )
        draft.explain(key, "its files changed since they were verified: hashed again before use")
    else:
        size = _size(situation, manifest.digest)
        kept = seen.value.verified_bytes if isinstance(seen, Present) and isinstance(seen.value, PartialModel) else 0
        to_fetch = situation.observed.state.missing.get(manifest.digest, size)
        cause = f"continues after {kept} bytes" if kept else "not installed"
        action = DownloadModel(
            id=f"download/{key}",
            cause=cause,
            model=key,
            manifest=manifest,
            size=size,
            to_fetch=to_fetch,
            sources=sources,
        )
    _add_staging(situation, draft, action, key, manifest.digest)


def _add_staging(situation: Situation, draft: Draft, action: Action, key: str, digest: str) -> None:
    hold = situation.observed.memory.holds.get(digest)
    if hold is not None and hold.until > situation.now:
        draft.hold(key, hold.reason, f"{hold.message} ({_attempts(hold.failures)})", hold.until)
        _block_if_target(situation, draft, digest)
        return
    if waits(situation, draft, "stage", key, "staging waits for its window"):
        _block_if_target(situation, draft, digest)
        return
    draft.actions.append(action)
    if _is_target(situation, digest):
        draft.staging.append(action.id)


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


# --- removal ------------------------------------------------------------------------------------------------------


def _remove_unlisted(situation: Situation, draft: Draft) -> None:
    document = situation.desired.document
    if document is None or not situation.desired.verified:
        return
    listed = {spec.manifest.digest for spec in document.spec.models}
    if not listed and not document.spec.policy.gc.allow_empty:
        draft.explain("models", "the snapshot lists no models, and gc.allowEmpty is off: nothing is removed")
        return
    kept = {target.manifest for target in _in_use(situation)}
    for digest, record in sorted(situation.observed.memory.models.items(), key=lambda item: item[1].key):
        if digest in listed or digest in kept:
            continue
        if record.unlisted_for < document.spec.policy.gc.grace:
            draft.explain(record.key, f"not listed; kept for its grace ({record.unlisted_for:.0f} s of running time)")
            continue
        draft.actions.append(
            RemoveModel(
                id=f"remove/{record.key}",
                cause=f"not listed for {record.unlisted_for:.0f} s of running time",
                model=record.key,
                manifest=digest,
                size=record.size,
            )
        )


def _in_use(situation: Situation) -> list[ServingTarget]:
    good = situation.observed.memory.last_known_good
    targets = (situation.choice.target, situation.choice.wanted, good.target if good else None)
    return [target for target in targets if target is not None]


# --- doing --------------------------------------------------------------------------------------------------------


def perform(action: Action, context: Context) -> Changes:
    """Carry out one action on a model."""
    adapters = context.adapters
    now = adapters.ports.clock.now()
    if isinstance(action, DownloadModel):
        model = adapters.documents.model(action.manifest.digest)
        sources = context.sources.get(action.manifest.digest, action.sources)
        remarks = adapters.store.acquire(model, sources, progress=adapters.progress, stop=adapters.ports.stop)
        blamed = tuple(Note("Warning", "SourceBlamed", remark, subject=action.model) for remark in remarks)
        return (*_installed(action, context, "downloaded and verified", "ModelInstalled"), *blamed)
    if isinstance(action, VerifyModel):
        model = adapters.documents.model(action.manifest.digest)
        adapters.store.verify(model, progress=adapters.progress, stop=adapters.ports.stop)
        return (DropHold(action.manifest.digest), Note("Normal", "ModelVerified", f"{action.model} was hashed again"))
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
    if isinstance(action, RemoveModel):
        adapters.store.remove(action.manifest)
        note = Note("Normal", "ModelRemoved", f"{action.model} was removed: {action.cause}", subject=action.model)
        return (ForgetModel(action.manifest), note)
    raise TypeError(f"not an action on models: {action.kind}")


def _installed(action: DownloadModel, context: Context, cause: str, reason: str) -> tuple[Change, ...]:
    put: PutModel = model_state(
        context.memory,
        manifest=action.manifest.digest,
        key=action.model,
        state="Pending",
        cause=cause,
        size=action.size,
        now=context.adapters.ports.clock.now(),
    )
    note = Note("Normal", reason, f"{action.model} was {cause}", subject=action.model)
    return (put, DropHold(action.manifest.digest), note)


KIND = Kind("model", (DownloadModel, VerifyModel, SetModelState, RemoveModel), diff, perform)

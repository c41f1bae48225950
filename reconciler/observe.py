"""One look at everything: what is there, and what is remembered. Reads only (I9)."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from reconciler.gpus import attributed, judged
from reconciler.modes import usable
from reconciler.selectors import node_labels
from reconciler.target import assigned
from schemas.errors import BackendUnavailable, ReconcileError
from schemas.observation import Absent, ArchivedModel, NodeState, Observed, PartialModel, Present, StoredModel, Unknown
from schemas.refusals import MissingDocument

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from reconciler.kinds.base import Documents
    from runtime.interfaces import Backend, Engine, EnvironmentStore, Front, HardwareProbe, ModelStore
    from schemas.assignments import Assignment
    from schemas.memory import Memory
    from schemas.node import NodeConfig
    from schemas.observation import FrontSeen, Hardware, Instance, ModelSeen, Observation, StoredEnvironment
    from schemas.snapshot import SnapshotDocument
    from schemas.target import ServingTarget

    Judge = Callable[[Backend, Instance, ServingTarget], Instance]


def observe(
    *,
    node: NodeConfig,
    node_id: str,
    memory: Memory,
    document: SnapshotDocument | None,
    documents: Documents,
    hardware: HardwareProbe,
    backends: Mapping[str, Backend],
    engines: Mapping[str, Engine],
    store: ModelStore,
    environments: EnvironmentStore,
    front: Front | None = None,
    judge: Judge = lambda _backend, item, _target: item,
) -> Observed:
    """Look at the node.

    What fails to answer becomes `Unknown` with its reason; nothing is guessed.

    Args:
        node: the node's configuration.
        node_id: checksummed address of the node's key.
        memory: what the journal remembers.
        document: the snapshot that is asked about: its images and models are looked for.
        documents: where manifests are read, to know what is missing.
        hardware: reads the machine.
        backends: this node's backends.
        engines: engines that this agent knows.
        store: the model store.
        environments: the locked native environments.
        front: the front; None on a node without one.
        judge: asks an instance that serves how it is.
    """
    installed = tuple(native for engine in engines.values() if (native := engine.native()) is not None)
    machine = hardware.read()
    labels = node_labels(node.labels, machine, installed, usable(backends, node))
    assignment = assigned(document, node_id, labels) if document is not None else None
    wanted = _wanted(document, assignment, memory)
    models = _models(store, wanted)
    missing, room = _missing(store, documents, [*wanted, *_returning(document, wanted, models)], models)
    seen = {name: _instances(backend, memory, judge, machine) for name, backend in sorted(backends.items())}
    return Observed(
        node_id=node_id,
        memory=memory,
        state=NodeState(
            hardware=_attributed(machine, seen, backends),
            engines=installed,
            backends=seen,
            not_enforced={name: backend.not_enforced() for name, backend in sorted(backends.items())},
            images=_images(document, assignment, memory, backends),
            models=models,
            missing=missing,
            room=room,
            residue=_residue(store),
            cold_free=store.cold_free(),
            unguarded=store.unguarded(),
            front=_front(front) if front is not None else None,
            interpreter=environments.interpreter,
            environments=_environments(environments),
        ),
    )


def _attributed(
    machine: Hardware, seen: Mapping[str, Observation[tuple[Instance, ...]]], backends: Mapping[str, Backend]
) -> Hardware:
    """The machine, with whose processes compute on its GPUs. Asks nothing where none do."""
    running = [
        item
        for found in seen.values()
        if isinstance(found, Present)
        for item in found.value
        if item.status == "running" and item.gpus
    ]
    pids = {process.pid for gpu in machine.gpus for process in gpu.processes or ()}
    owners: dict[int, str] = {}
    for item in running:
        for pid in sorted(pids - owners.keys()):
            with suppress(BackendUnavailable):
                if backends[item.backend].is_peer(item.name, pid):
                    owners[pid] = item.name
    return attributed(machine, owners)


def _instances(backend: Backend, memory: Memory, judge: Judge, machine: Hardware) -> Observation[tuple[Instance, ...]]:
    try:
        found = judged(backend.list(), machine)
    except BackendUnavailable as error:
        return Unknown(error.message)
    good = memory.last_known_good
    if good is None:
        return Present(found)
    # What has not served yet is judged by its start and its probe.
    proven = good.target
    fits = {item.name for item in found if item.spec_digest == proven.spec_digest and item.intent in memory.intents}
    return Present(tuple(judge(backend, item, proven) if item.name in fits else item for item in found))


def _environments(environments: EnvironmentStore) -> Observation[Mapping[str, StoredEnvironment]]:
    try:
        return Present(environments.list())
    except OSError as error:
        return Unknown(str(error))


def _front(front: Front) -> Observation[FrontSeen]:
    try:
        return Present(front.look())
    except BackendUnavailable as error:
        return Unknown(error.message)


def _wanted(document: SnapshotDocument | None, assignment: Assignment | None, memory: Memory) -> Sequence[str]:
    """Manifests that this decision may be about, in a fixed order."""
    wanted: dict[str, None] = {}
    if document is not None and assignment is not None:
        serve = frozenset(assignment.serve)
        wanted.update((spec.manifest.digest, None) for spec in document.spec.models if spec.key in serve)
    if memory.last_known_good is not None:
        wanted[memory.last_known_good.target.manifest] = None
    return tuple(wanted)


def _models(store: ModelStore, wanted: Sequence[str]) -> Mapping[str, Observation[ModelSeen]]:
    try:
        stored = store.list()
    except (OSError, ReconcileError) as error:
        return dict.fromkeys(wanted, Unknown(str(error)))
    seen: dict[str, Observation[ModelSeen]] = {digest: Absent() for digest in wanted}
    return seen | {digest: Present(model) for digest, model in stored.items()}


def _returning(
    document: SnapshotDocument | None, wanted: Sequence[str], models: Mapping[str, Observation[ModelSeen]]
) -> Sequence[str]:
    """Listed manifests that are here in another form than they should be: in quarantine, or in cold storage."""
    listed = [spec.manifest.digest for spec in document.spec.models] if document is not None else []
    found = {digest: models[digest] for digest in listed if digest in models and digest not in wanted}
    return [
        digest
        for digest, seen in found.items()
        if isinstance(seen, Present)
        and (isinstance(seen.value, ArchivedModel) or (isinstance(seen.value, PartialModel) and seen.value.quarantined))
    ]


def _missing(
    store: ModelStore,
    documents: Documents,
    digests: Sequence[str],
    models: Mapping[str, Observation[ModelSeen]],
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Bytes to fetch, and bytes of the disk to take, by manifest."""
    missing: dict[str, int] = {}
    room: dict[str, int] = {}
    for digest in digests:
        seen = models[digest]
        stored = isinstance(seen, Present) and isinstance(seen.value, StoredModel)
        if stored or isinstance(seen, Unknown):
            continue
        try:
            model = documents.model(digest)
            missing[digest], room[digest] = store.missing(model), store.room(model)
        except MissingDocument:
            # Its manifest is not kept: it cannot be fetched, which the action itself will say.
            continue
    return missing, room


def _residue(store: ModelStore) -> int:
    try:
        return store.residue()
    except (OSError, ReconcileError):
        return 0


def _images(
    document: SnapshotDocument | None,
    assignment: Assignment | None,
    memory: Memory,
    backends: Mapping[str, Backend],
) -> Mapping[str, Observation[str]]:
    asked: dict[tuple[str, str], None] = {}
    containers = [name for name, backend in sorted(backends.items()) if backend.mode == "container"]
    if document is not None and assignment is not None:
        runtime = next(runtime for runtime in document.spec.runtimes if runtime.name == assignment.runtime)
        asked.update(((name, image.ref), None) for name in containers for image in runtime.images)
    # What was good before the last known good matters only where something was rejected.
    for good in (memory.last_known_good, memory.earlier_good if memory.rejections else None):
        if good is not None and good.target.image is not None and good.target.backend in backends:
            asked[good.target.backend, good.target.image] = None
    return {f"{name}/{ref}": _image(backends[name], ref) for name, ref in asked}


def _image(backend: Backend, ref: str) -> Observation[str]:
    try:
        return backend.image(ref)
    except BackendUnavailable as error:
        return Unknown(error.message)

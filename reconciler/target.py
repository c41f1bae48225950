"""What this node should serve now: the snapshot's wish, the last known good, or nothing. Pure.

`choose` walks from the assignment to a resolved target; every step that ends the walk leaves its reason, so that
`why` and `plan` tell the same story.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from reconciler.fitting import misfit
from reconciler.gpus import allot
from reconciler.modes import choose_mode, usable
from reconciler.selectors import inside, matches, node_labels, wave_of
from schemas.observation import Present, StoredModel, Unknown
from schemas.plan import Explanation, Held
from schemas.target import ServingTarget, locked_environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from reconciler.desired import Desired
    from schemas.assignments import Assignment
    from schemas.memory import LastKnownGood, Memory
    from schemas.node import NodeConfig
    from schemas.observation import Hardware, NativeEngine, Observed
    from schemas.runtimes import RuntimeSpec
    from schemas.snapshot import ModelSpec, SnapshotDocument, SnapshotSpec
    from schemas.target import BackendName

Role = Literal["desired", "last-known-good", "none", "trial"]
"""`trial`: something else is served for as long as its first validation takes."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What should serve, in which role, and why."""

    target: ServingTarget | None
    role: Role
    wanted: ServingTarget | None
    """What the snapshot asks for, also where something else was chosen."""
    serve: tuple[ModelSpec, ...]
    """Models that should be installed here, the loaded one first."""
    held: tuple[Held, ...]
    trace: tuple[Explanation, ...]
    assigned: bool
    """Whether an assignment of the snapshot matches this node."""
    unfit: frozenset[str] = frozenset()
    """Manifests of those in `serve` that are not here and that this machine can never run: they are not fetched."""


class _NotPossibleError(Exception):
    """Ends the walk: the wish cannot be followed, with a stable reason and a message."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def choose(desired: Desired, observed: Observed, node: NodeConfig, now: datetime | None = None) -> Choice:
    """Decide what this node should serve.

    Args:
        desired: the snapshot, verified or a draft.
        observed: what is there, and what is remembered.
        node: the owner's configuration and policy.
        now: the time at which a wait is judged; without it, waits are as if they were over.
    """
    trace: list[Explanation] = []
    if desired.document is None:
        return Choice(None, "none", None, (), (), (_step("runtime", "no snapshot was accepted yet"),), assigned=False)
    state = observed.state
    labels = node_labels(node.labels, state.hardware, state.engines, usable(observed.state.backends, node))
    assignment = assigned(desired.document, observed.node_id, labels, trace)
    if assignment is None:
        held = Held(subject="runtime", reason="NoAssignment", message="no assignment of the snapshot matches this node")
        return _fall_back(desired.document, observed, node, None, (), (held,), trace, assigned=False)
    serve = _served(desired.document, assignment)
    choice = _follow(desired.document, assignment, serve, observed, node, now, trace)
    runtime = _runtime(desired.document, assignment)
    absent = (spec for spec in serve if not _has(observed, spec.manifest.digest))
    unfit = frozenset(spec.manifest.digest for spec in absent if misfit(runtime, spec, state.hardware))
    return replace(choice, unfit=choice.unfit | unfit) if unfit else choice


def _follow(
    document: SnapshotDocument,
    assignment: Assignment,
    serve: tuple[ModelSpec, ...],
    observed: Observed,
    node: NodeConfig,
    now: datetime | None,
    trace: list[Explanation],
) -> Choice:
    """The snapshot's wish, or what is served instead of it, for an assignment that matches."""
    try:
        wanted = _resolve(document, assignment, serve[0], observed, node, trace)
    except _NotPossibleError as impossible:
        held = Held(subject=serve[0].key, reason=impossible.reason, message=impossible.message)
        return _fall_back(document, observed, node, None, serve, (held,), trace, assigned=True)
    refused = refusal(document, wanted, observed) or _untold(wanted, observed, now)
    if refused is not None:
        return _fall_back(document, observed, node, wanted, serve, (refused,), trace, assigned=True)
    lacking = allot(wanted, observed.state.hardware)
    if lacking.reason == "Incompatible":
        held = Held(subject=serve[0].key, reason=lacking.reason, message=lacking.message)
        instead = _fall_back(document, observed, node, None, serve, (held,), trace, assigned=True)
        return replace(instead, unfit=frozenset({wanted.manifest}))
    trace.append(_step("runtime", f"the snapshot's wish is followed: {wanted.model} on {wanted.engine}"))
    return Choice(wanted, "desired", wanted, serve, (), tuple(trace), assigned=True)


def withdrawn(document: SnapshotDocument, target: ServingTarget) -> str:
    """The signed reason why a target must not run, empty if it may (I6)."""
    digests = {entry.digest: entry.reason or "withdrawn by the network" for entry in document.spec.withdrawn}
    image = "sha256:" + target.image.partition("@sha256:")[2] if target.image else ""
    lock = target.lock.digest if target.lock is not None else ""
    return digests.get(target.manifest) or digests.get(image) or digests.get(lock) or ""


# --- the walk -----------------------------------------------------------------------------------------------------


def assigned(
    document: SnapshotDocument, node_id: str, labels: Mapping[str, str], trace: list[Explanation] | None = None
) -> Assignment | None:
    """The first assignment that selects this node and whose rollout has reached it.

    Args:
        document: the snapshot.
        node_id: checksummed address of the node's key.
        labels: the node's labels and facts.
        trace: receives a step for each assignment that was looked at.
    """
    steps = trace if trace is not None else []
    for number, assignment in enumerate(document.spec.assignments, start=1):
        if not matches(assignment.selector, labels):
            steps.append(_step("assignment", f"{number} does not select this node"))
        elif not inside(document.spec, assignment.rollout, node_id):
            steps.append(
                _step("assignment", f"{number} selects this node, {_not_reached(document.spec, assignment, node_id)}")
            )
        else:
            steps.append(_step("assignment", f"{number} matches: {assignment.runtime} serves {assignment.serve[0]}"))
            return assignment
    return None


def _not_reached(spec: SnapshotSpec, assignment: Assignment, node_id: str) -> str:
    rollout = assignment.rollout
    assert rollout is not None  # noqa: S101 - without one, every node is inside
    wave = wave_of(spec, rollout, node_id)
    own = f"; this node comes with wave {wave}" if wave else ""
    where = f"wave {rollout.wave}, {spec.share(rollout)}%" if rollout.wave else f"{spec.share(rollout)}%"
    return f"but its rollout has not reached it: {rollout.key} is at {where}{own}"


def _served(document: SnapshotDocument, assignment: Assignment) -> tuple[ModelSpec, ...]:
    models = {model.key: model for model in document.spec.models}
    return tuple(models[key] for key in assignment.serve)


def _runtime(document: SnapshotDocument, assignment: Assignment) -> RuntimeSpec:
    return next(runtime for runtime in document.spec.runtimes if runtime.name == assignment.runtime)


def _resolve(
    document: SnapshotDocument,
    assignment: Assignment,
    model: ModelSpec,
    observed: Observed,
    node: NodeConfig,
    trace: list[Explanation],
) -> ServingTarget:
    runtime = _runtime(document, assignment)
    hardware = observed.state.hardware
    if lacking := misfit(runtime, model, hardware):
        raise _NotPossibleError("Incompatible", lacking)
    choice = choose_mode(runtime, document.spec.policy, node, usable(observed.state.backends, node))
    trace.append(_step("mode", choice.reason))
    if choice.mode is None or choice.backend is None:
        raise _NotPossibleError("NoMode", choice.reason)
    _require_isolation(runtime, choice.backend, observed, node)
    image = environment = lock = None
    if choice.mode == "container":
        image = _image(runtime, hardware)
    else:
        lock = runtime.native.lock if runtime.native is not None else None
        environment = (
            locked_environment(lock.digest, observed.state.interpreter)
            if lock is not None
            else _environment(runtime, observed.state.engines)
        )
    return ServingTarget(
        runtime=runtime.name,
        engine=runtime.engine,
        version=runtime.version,
        mode=choice.mode,
        backend=choice.backend,
        image=image,
        environment=environment,
        lock=lock,
        engine_args=runtime.engine_args,
        isolation=runtime.isolation,
        resources=runtime.resources,
        timeouts=runtime.timeouts,
        model=model.key,
        manifest=model.manifest.digest,
        probe=model.validation.probe,
        gpu_memory=model.requires.gpu_memory,
        compute_capability=model.requires.compute_capability,
    )


def _require_isolation(runtime: RuntimeSpec, backend: BackendName, observed: Observed, node: NodeConfig) -> None:
    """Anything weaker than full isolation is allowed by snapshot and by the node's owner, or refused (I10)."""
    settings = {"docker": node.backends.docker, "podman": node.backends.podman, "native": node.backends.native}
    owner = settings.get(backend)
    by_owner = owner.allow_unenforced if owner is not None else ()
    by_network = runtime.isolation.allow_unenforced
    refused = [
        name for name in observed.state.not_enforced.get(backend, ()) if name not in by_owner or name not in by_network
    ]
    if refused:
        raise _NotPossibleError(
            "IsolationRefused",
            f"{backend} cannot enforce {', '.join(refused)} on this machine, and snapshot (isolation.allowUnenforced) "
            f"and node (backends.{backend}.allowUnenforced) do not both allow that",
        )


def _image(runtime: RuntimeSpec, hardware: Hardware) -> str:
    accelerator = "cuda" if runtime.resources.gpus else "cpu"
    for image in runtime.images:
        if image.platform == hardware.platform and image.accelerator == accelerator:
            return image.ref
    raise _NotPossibleError("Incompatible", f"{runtime.name} has no image for {hardware.platform} with {accelerator}")


def _environment(runtime: RuntimeSpec, engines: Sequence[NativeEngine]) -> str:
    installed = {engine.engine: engine for engine in engines}
    engine = installed.get(runtime.engine)
    if engine is None:
        raise _NotPossibleError("Incompatible", f"{runtime.engine} is not installed beside this agent")
    if engine.version != runtime.version:
        raise _NotPossibleError(
            "Incompatible",
            f"{runtime.engine} {engine.version} is installed beside this agent, the snapshot wants {runtime.version}",
        )
    return engine.environment


# --- refusals and the way back ------------------------------------------------------------------------------------


def refusal(document: SnapshotDocument, target: ServingTarget, observed: Observed) -> Held | None:
    """Why a target may not run: withdrawn by the network, or remembered as bad; None if it may."""
    reason = withdrawn(document, target)
    if reason:
        return Held(subject=target.model, reason="Withdrawn", message=reason)
    subject = target.subject(observed.state.hardware.accelerator)
    rejection = observed.memory.rejections.get(subject)
    if rejection is None:
        return None
    return Held(
        subject=target.model,
        reason=rejection.reason,
        message=rejection.message,
        token=subject,
    )


def _untold(target: ServingTarget, observed: Observed, now: datetime | None) -> Held | None:
    """Why a target waits whose validation could not tell, while there is another one to serve meanwhile (I5, I6)."""
    hold, good = observed.memory.holds.get(target.spec_digest), observed.memory.last_known_good
    if hold is None or hold.reason != "ValidationInconclusive" or now is None or hold.until <= now:
        return None
    if good is None or good.target.spec_digest == target.spec_digest:
        return None
    return Held(subject=target.model, reason=hold.reason, message=hold.message, until=hold.until)


def _fall_back(
    document: SnapshotDocument,
    observed: Observed,
    node: NodeConfig,
    wanted: ServingTarget | None,
    serve: tuple[ModelSpec, ...],
    held: tuple[Held, ...],
    trace: list[Explanation],
    *,
    assigned: bool,
) -> Choice:
    trace.extend(_step(item.subject, f"{item.reason}: {item.message}") for item in held)
    good, earlier = observed.memory.last_known_good, observed.memory.earlier_good
    if good is None:
        trace.append(_step("runtime", "there is no last known good to go back to"))
        return Choice(None, "none", wanted, serve, held, tuple(trace), assigned=assigned)
    refused = refusal(document, good.target, observed) or _turned_off(good.target, observed, node)
    if refused is None:
        trace.append(_step("runtime", f"the last known good serves: {good.target.model}"))
        return Choice(good.target, "last-known-good", wanted, serve, held, tuple(trace), assigned=assigned)
    trace.append(_step("runtime", f"the last known good may not run either: {refused.message}"))
    held = held if refused in held else (*held, refused)
    there = earlier is not None and is_stored(earlier.target, observed)
    if earlier is not None and there and _may_return(document, earlier.target, observed, node):
        trace.append(_step("runtime", f"what was good before it serves: {earlier.target.model}"))
        return Choice(earlier.target, "last-known-good", wanted, serve, held, tuple(trace), assigned=assigned)
    return Choice(None, "none", wanted, serve, held, tuple(trace), assigned=assigned)


def _may_return(document: SnapshotDocument, target: ServingTarget, observed: Observed, node: NodeConfig) -> bool:
    return (refusal(document, target, observed) or _turned_off(target, observed, node)) is None


def _turned_off(target: ServingTarget, observed: Observed, node: NodeConfig) -> Held | None:
    """Why nothing is started on a backend that the owner turned off; what runs there already goes on (I6)."""
    if target.backend in usable(observed.state.backends, node):
        return None
    seen = observed.state.backends.get(target.backend)
    there = seen.value if isinstance(seen, Present) else ()
    if isinstance(seen, Unknown) or any(
        item.status == "running" and item.spec_digest == target.spec_digest for item in there
    ):
        return None
    return Held(subject=target.model, reason="NoMode", message=f"{target.backend} is turned off on this node")


def has_way_back(document: SnapshotDocument, observed: Observed, target: ServingTarget, node: NodeConfig) -> bool:
    """Whether this node has something else to serve, should it give a target up.

    Args:
        document: the snapshot in force.
        observed: what is there, and what is remembered.
        target: what would be given up.
        node: the owner's configuration.
    """
    good, earlier = observed.memory.last_known_good, observed.memory.earlier_good
    there = earlier if earlier is not None and is_stored(earlier.target, observed) else None
    return any(
        known.target.spec_digest != target.spec_digest and _may_return(document, known.target, observed, node)
        for known in (good, there)
        if known is not None
    )


def is_stored(target: ServingTarget, observed: Observed) -> bool:
    """What was good before the last known good is gone back to only as long as nobody has removed it."""
    return _has(observed, target.manifest)


def _has(observed: Observed, manifest: str) -> bool:
    """Whether a model is in the store."""
    seen = observed.state.models.get(manifest)
    return isinstance(seen, Present) and isinstance(seen.value, StoredModel)


def good_for(memory: Memory, target: ServingTarget) -> LastKnownGood | None:
    """The good that a target was chosen from, None where it is not one."""
    goods = (memory.last_known_good, memory.earlier_good)
    return next((good for good in goods if good is not None and good.target.spec_digest == target.spec_digest), None)


def _step(subject: str, decision: str) -> Explanation:
    return Explanation(subject=subject, decision=decision[:4096])

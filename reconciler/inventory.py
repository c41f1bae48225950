"""What nodes publish about themselves, so that plans for them can be made somewhere else. Pure.

`facts` goes into a node's status; `restore` makes the planner's arguments of it again, so that the plan made from a
status is the one that the node itself would make. A fingerprint that survives the way says so in the tests.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from reconciler.gpus import told
from reconciler.selectors import node_labels
from schemas.facts import (
    BackendFacts,
    EngineFacts,
    EnvironmentFacts,
    GoodFacts,
    HoldFacts,
    ImageFacts,
    InstanceFacts,
    NodeFacts,
    ReceiptFacts,
    RejectionFacts,
    StartsFacts,
    StoredFacts,
)
from schemas.memory import Hold, LastKnownGood, Memory, ModelRecord, Receipt, Rejection
from schemas.node import NodeConfig, SourcePolicy, TrustPin
from schemas.observation import (
    Absent,
    ArchivedModel,
    Hardware,
    Instance,
    ModelSeen,
    NativeEngine,
    NodeState,
    Observed,
    PartialModel,
    Present,
    StoredEnvironment,
    StoredModel,
    Unknown,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from schemas.observation import Observation
    from schemas.status import HardwareStatus, NodeStatus


# --- what a node says of itself -----------------------------------------------------------------------------------


def facts(node: NodeConfig, observed: Observed) -> NodeFacts:
    """What the planner looks at on a node, as far as its status does not say it already."""
    state, memory = observed.state, observed.memory
    return NodeFacts(
        # The owner's own mirrors say nothing about a plan, and may say more than others should read.
        policy=node.policy.model_copy(update={"sources": SourcePolicy.model_construct()}),
        configured=node.backends,
        keep_free=node.keep_free,
        engines=tuple(
            EngineFacts(engine=e.engine, version=e.version, environment=e.environment) for e in state.engines
        ),
        backends={name: _backend(seen, state.not_enforced.get(name, ())) for name, seen in state.backends.items()},
        images=tuple(_image(name, seen) for name, seen in sorted(state.images.items())),
        stored=tuple(_stored(digest, seen) for digest, seen in sorted(state.models.items())),
        interpreter=state.interpreter,
        environments=tuple(
            EnvironmentFacts(environment=item.environment, lock=item.lock) for item in _environments(state.environments)
        ),
        receipts=tuple(_receipt(item) for item in memory.receipts),
        rejections=tuple(_rejection(item) for _, item in sorted(memory.rejections.items())),
        holds=tuple(_hold(item) for _, item in sorted(memory.holds.items())),
        starts=tuple(
            StartsFacts(spec_digest=digest, at=tuple(_second(moment) for moment in at))
            for digest, at in sorted(memory.recent_starts.items())
        ),
        last_known_good=_good(memory.last_known_good),
        earlier_good=_good(memory.earlier_good),
        retests=dict(memory.retests),
        downtimes=dict(memory.downtimes),
        applied=memory.applied,
        suspended=memory.suspended,
    )


def _backend(seen: Observation[tuple[Instance, ...]], not_enforced: Sequence[str]) -> BackendFacts:
    if not isinstance(seen, Present):
        return BackendFacts(unknown=_why(seen), not_enforced=tuple(not_enforced))
    instances = tuple(
        InstanceFacts(
            name=item.name, intent=item.intent, spec_digest=item.spec_digest, status=item.status, health=item.health
        )
        for item in seen.value
    )
    return BackendFacts(instances=instances, not_enforced=tuple(not_enforced))


def _image(name: str, seen: Observation[str]) -> ImageFacts:
    if isinstance(seen, Present):
        return ImageFacts(name=name, id=seen.value)
    return ImageFacts(name=name, unknown=_why(seen) if isinstance(seen, Unknown) else "")


@lru_cache(maxsize=1024)
def _stored(digest: str, seen: Observation[ModelSeen]) -> StoredFacts:
    if isinstance(seen, Unknown):
        return StoredFacts(manifest=digest, state="unknown", unknown=_why(seen))
    if isinstance(seen, Absent):
        return StoredFacts(manifest=digest, state="absent")
    if isinstance(seen.value, ArchivedModel):
        return StoredFacts(manifest=digest, state="archived", bytes=seen.value.size)
    if isinstance(seen.value, PartialModel):
        state: Literal["partial", "quarantined"] = "quarantined" if seen.value.quarantined else "partial"
        return StoredFacts(manifest=digest, state=state, bytes=seen.value.verified_bytes)
    return StoredFacts(manifest=digest, state="stored" if seen.value.intact else "changed", bytes=seen.value.size)


def _receipt(item: Receipt) -> ReceiptFacts:
    return ReceiptFacts(
        subject=item.subject,
        manifest=item.manifest,
        intent=item.intent,
        issued_at=_second(item.issued_at),
        digest=item.digest,
    )


def _good(item: LastKnownGood | None) -> GoodFacts | None:
    return GoodFacts(target=item.target, snapshot=item.snapshot, since=_second(item.since)) if item else None


def _seen_good(item: GoodFacts | None) -> LastKnownGood | None:
    return LastKnownGood(item.target, item.snapshot, item.since) if item else None


def _rejection(item: Rejection) -> RejectionFacts:
    return RejectionFacts(
        subject=item.subject,
        model=item.model,
        reason=item.reason,
        message=item.message[:4096],
        since=_second(item.since),
        snapshot=item.snapshot,
    )


def _hold(item: Hold) -> HoldFacts:
    return HoldFacts(
        subject=item.subject,
        reason=item.reason,
        message=item.message[:4096],
        failures=item.failures,
        until=_second(item.until),
    )


def _why(seen: Absent | Unknown) -> str:
    return (seen.reason or "unknown")[:4096] if isinstance(seen, Unknown) else "absent"


def _second(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)


# --- and back -----------------------------------------------------------------------------------------------------


def restore(status: NodeStatus) -> tuple[NodeConfig, Observed] | None:
    """The planner's arguments for a node, from its status; None when its agent is too old to publish them."""
    seen = status.facts
    if seen is None:
        return None
    config = NodeConfig.model_construct(
        api_version="reconcile/v1alpha1",
        kind="Node",
        network=status.network,
        # Where it fetches from and keeps things is the node's own affair: no plan depends on it.
        repositories=(),
        trust=TrustPin.model_construct(digest=""),
        state_dir="/",
        labels=status.labels,
        policy=seen.policy,
        backends=seen.configured,
        keep_free=seen.keep_free,
    )
    return config, Observed(status.node, _state(status, seen), _memory(status, seen))


def hardware_of(seen: HardwareStatus) -> Hardware:
    """The machine, as the planner and selectors know it."""
    return Hardware(
        platform=seen.platform,
        processor=seen.processor,
        cpus=seen.cpus,
        memory=seen.memory,
        disk=seen.disk,
        gpus=tuple(map(told, seen.gpus)),
        disk_free=seen.disk_free,
    )


def labels_of(status: NodeStatus) -> dict[str, str]:
    """The labels and facts of a node that selectors see."""
    seen = status.facts
    engines = _engines(seen) if seen is not None else ()
    return node_labels(status.labels, hardware_of(status.hardware), engines, seen.backends if seen is not None else ())


def _engines(seen: NodeFacts) -> tuple[NativeEngine, ...]:
    return tuple(NativeEngine(item.engine, item.version, item.environment) for item in seen.engines)


def _state(status: NodeStatus, seen: NodeFacts) -> NodeState:
    return NodeState(
        hardware=hardware_of(status.hardware),
        engines=_engines(seen),
        backends={name: _instances(name, item) for name, item in seen.backends.items()},
        not_enforced={name: item.not_enforced for name, item in seen.backends.items()},
        images={item.name: _seen_image(item) for item in seen.images},
        models={item.manifest: _seen_model(item) for item in seen.stored},
        interpreter=seen.interpreter,
        environments=Present(
            {item.environment: StoredEnvironment(item.environment, item.lock) for item in seen.environments}
        )
        if seen.interpreter
        else Absent(),
    )


def _environments(seen: Observation[Mapping[str, StoredEnvironment]]) -> Sequence[StoredEnvironment]:
    return [item for _, item in sorted(seen.value.items())] if isinstance(seen, Present) else ()


def _instances(name: str, item: BackendFacts) -> Observation[tuple[Instance, ...]]:
    if item.unknown:
        return Unknown(item.unknown)
    return Present(
        tuple(Instance(one.name, one.intent, name, one.spec_digest, one.status, one.health) for one in item.instances)
    )


def _seen_image(item: ImageFacts) -> Observation[str]:
    if item.unknown:
        return Unknown(item.unknown)
    return Present(item.id) if item.id else Absent()


def _seen_model(item: StoredFacts) -> Observation[ModelSeen]:
    if item.state == "unknown":
        return Unknown(item.unknown)
    if item.state == "absent":
        return Absent()
    if item.state == "archived":
        return Present(ArchivedModel(item.manifest, item.bytes))
    if item.state in ("partial", "quarantined"):
        return Present(PartialModel(item.manifest, item.bytes, quarantined=item.state == "quarantined"))
    return Present(StoredModel(item.manifest, item.state == "stored", item.bytes))


def _memory(status: NodeStatus, seen: NodeFacts) -> Memory:
    return Memory(
        models={
            item.manifest: ModelRecord(
                item.manifest,
                item.model,
                item.state,
                item.since,
                item.cause,
                item.failures,
                item.not_before,
                item.unlisted_for,
                item.size,
            )
            for item in status.models
        },
        receipts=tuple(
            Receipt(number, item.subject, item.manifest, item.intent, item.issued_at, item.digest)
            for number, item in enumerate(seen.receipts, start=1)
        ),
        rejections={
            item.subject: Rejection(item.subject, item.model, item.reason, item.message, item.since, item.snapshot)
            for item in seen.rejections
        },
        holds={
            item.subject: Hold(item.subject, item.reason, item.message, item.failures, item.until)
            for item in seen.holds
        },
        # What a node publishes as its instances are those that its journal knows.
        intents=frozenset(one.intent for item in seen.backends.values() for one in item.instances),
        last_known_good=_seen_good(seen.last_known_good),
        earlier_good=_seen_good(seen.earlier_good),
        retests=seen.retests,
        recent_starts={item.spec_digest: item.at for item in seen.starts},
        downtimes=seen.downtimes,
        applied=seen.applied,
        suspended=seen.suspended,
    )

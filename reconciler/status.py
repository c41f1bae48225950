"""One summariser: from everything known at the end of a pass to conditions, status and exit code. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from reconciler.drift import SPENT
from reconciler.inventory import facts
from reconciler.proof import retest
from runtime.interfaces import SOCKET_NAME
from schemas.observation import Present, StoredModel
from schemas.plan import CRASH_LOOPING, StartInstance, StopInstance
from schemas.status import (
    ComingStatus,
    Condition,
    ConditionType,
    FrontStatus,
    GpuStatus,
    HardwareStatus,
    ModelStatus,
    NextStatus,
    NodeStatus,
    ReceiptsStatus,
    ReceiptStatus,
    ServingStatus,
    SnapshotStatus,
    StoreStatus,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from pathlib import Path
    from typing import Literal

    from reconciler.executor import Outcome
    from reconciler.journal import Accepted
    from reconciler.tempo import Next
    from schemas.errors import ReconcileError
    from schemas.memory import ModelRecord, Receipt
    from schemas.node import NodeConfig
    from schemas.observation import Instance, Observed
    from schemas.plan import Drift, Plan
    from schemas.status import PlanStatus, WantedStatus
    from schemas.target import ServingTarget

EXIT_PENDING_WINDOW: Final = 5
EXIT_NOT_READY: Final = 6
_PRIORITY: Final = (64, 1, 3, 4, 5, 6, 2, 0)
"""CLI contract: when several apply, the first of these is the exit code."""

MOST_COMING: Final = 64
"""Things to come that a status lists; the nearest ones."""

_WAITING: Final = frozenset({"Suspended", "OutsideWindow"})
_QUIET: Final = frozenset({"SignaturesPending"})
"""Refusals that are part of normal work: nobody is alarmed, nothing fails."""


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What asking the repositories came to."""

    verified: bool
    """Whether the newest snapshot that was seen is the one in force."""
    reason: str
    message: str
    error: ReconcileError | None = None
    """The refusal or failure, None when all is well."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Everything that the summary is made from."""

    node: NodeConfig
    agent: str
    observed: Observed
    """The last look of the pass."""
    plan: Plan
    """What would still be done now: empty on a node that has converged."""
    role: str
    """Role of the chosen target: desired, last-known-good or none."""
    target: ServingTarget | None
    accepted: Accepted | None
    source: SourceReport
    failed: tuple[Outcome, ...]
    """Actions of this pass that failed."""
    drift: tuple[Drift, ...]
    """What this pass found that no snapshot changed."""
    not_enforced: tuple[str, ...]
    run_folder: Path
    previous: NodeStatus | None
    now: datetime
    front: FrontStatus | None = None
    receipts: ReceiptsStatus | None = None
    every: Mapping[str, int] = field(default_factory=dict)
    """By manifest digest: interval of its retests, seconds."""
    config_error: str = ""
    """Why the configuration that lies there now is not the one in force; empty when it is."""
    next: Next | None = None
    """When a daemon looks again."""
    wanted: WantedStatus | None = None
    carried: PlanStatus | None = None
    """The plan that is carried out, or the last one that was."""

    @property
    def at_work(self) -> bool:
        """Whether the plan is being carried out."""
        return self.carried is not None and self.carried.ended_at is None


def summarise(finding: Finding) -> NodeStatus:
    """The node's report."""
    serving = _serving(finding)
    hardware = finding.observed.state.hardware
    return NodeStatus(
        network=finding.node.network,
        node=finding.observed.node_id,
        account=finding.node.account,
        labels=dict(finding.node.labels),
        agent=finding.agent,
        updated_at=finding.now.replace(microsecond=0),
        conditions=_conditions(finding, serving),
        snapshot=_snapshot(finding.accepted),
        wanted=finding.wanted,
        serving=serving,
        front=finding.front,
        models=_models(finding, serving),
        store=StoreStatus(
            unguarded=finding.observed.state.unguarded,
            scrub_rate=finding.node.models.scrub.rate,
            scrub_every=finding.node.models.scrub.every,
            residue=finding.observed.state.residue,
        ),
        receipts=finding.receipts,
        held=finding.plan.held,
        drift=finding.plan.drift,
        plan=finding.carried,
        next=_next(finding.next) if finding.next is not None else None,
        hardware=HardwareStatus(
            platform=hardware.platform,
            processor=hardware.processor,
            cpus=hardware.cpus,
            memory=hardware.memory,
            disk=hardware.disk,
            disk_free=hardware.disk_free,
            gpus=tuple(GpuStatus.model_validate(asdict(gpu)) for gpu in hardware.gpus),
            gpu_trouble=hardware.gpu_trouble[:4096],
            unsupported=hardware.unsupported,
        ),
        engines=tuple(f"{engine.engine} {engine.version}" for engine in finding.observed.state.engines),
        facts=facts(finding.node, finding.observed),
    )


def exit_code(finding: Finding, status: NodeStatus) -> int:
    """The exit code of a pass (CLI contract)."""
    codes = {0}
    ready = _is(status, "Ready")
    error = finding.source.error
    # An unreachable source is no failure while something good serves (I6).
    if error is not None and error.reason not in _QUIET and (error.retry != "backoff" or not ready):
        codes.add(error.exit_code)
    if any(held.reason in _WAITING for held in finding.plan.held):
        codes.add(EXIT_PENDING_WINDOW)
    elif not ready:
        codes.add(EXIT_NOT_READY)
    return next(code for code in _PRIORITY if code in codes)


# --- conditions ---------------------------------------------------------------------------------------------------


def _conditions(finding: Finding, serving: ServingStatus | None) -> tuple[Condition, ...]:
    verdicts: dict[ConditionType, tuple[bool | None, str, str]] = {
        "Ready": _ready(finding, serving),
        "Reconciling": _reconciling(finding),
        "Stalled": _stalled(finding, serving),
        "SourceVerified": _source(finding),
        "Drifted": _drifted(finding),
        "RolledBack": _rolled_back(finding),
        "Suspended": _suspended(finding),
    }
    return tuple(_condition(finding, type_, verdict) for type_, verdict in verdicts.items())


def _condition(finding: Finding, type_: ConditionType, verdict: tuple[bool | None, str, str]) -> Condition:
    value, reason, message = verdict
    status: Literal["True", "False", "Unknown"] = "Unknown" if value is None else "True" if value else "False"
    before = finding.previous.condition(type_) if finding.previous is not None else None
    since = before.since if before is not None and before.status == status else finding.now.replace(microsecond=0)
    return Condition(type=type_, status=status, reason=reason, message=message[:4096], since=since)


def _ready(finding: Finding, serving: ServingStatus | None) -> tuple[bool | None, str, str]:
    if finding.accepted is None:
        return False, "NoSnapshot", "no snapshot was accepted yet"
    if serving is None:
        held = finding.plan.held
        return False, held[0].reason if held else "NotServing", held[0].message if held else "nothing serves"
    if serving.receipt is None:
        return False, "NotValidated", f"{serving.model} runs, but has not passed its probe"
    if finding.role == "last-known-good":
        held = finding.plan.held
        return False, held[0].reason if held else "RolledBack", f"{serving.model}, the last known good, serves"
    # A retest, a repair or a clean-up that is under way does not change what serves.
    if not _is_settled(finding, serving):
        reason, message = _pending(finding)
        return False, reason, f"{serving.model} serves; not yet as wanted: {message}"
    return True, "Serving", f"{serving.model} serves and has passed its probe"


def _is_settled(finding: Finding, serving: ServingStatus) -> bool:
    """Whether nothing is due, or what is under way leaves the instance that serves as it is."""
    if finding.plan.held or not finding.plan.actions:
        return not finding.plan.held
    swaps = any(isinstance(action, StartInstance | StopInstance) for action in finding.plan.actions)
    wanted = finding.target is not None and serving.manifest == finding.target.manifest
    return finding.at_work and wanted and not swaps


def _pending(finding: Finding) -> tuple[str, str]:
    if finding.plan.held:
        return finding.plan.held[0].reason, f"{finding.plan.held[0].subject}: {finding.plan.held[0].message}"
    if finding.at_work:
        return "Progressing", f"{_actions(finding.plan)} under way"
    failed = next((outcome for outcome in finding.failed if outcome.error is not None), None)
    if failed is not None and failed.error is not None:
        return failed.error.reason, failed.error.message
    return "ChangesPending", f"{len(finding.plan.actions)} actions are due"


def _reconciling(finding: Finding) -> tuple[bool | None, str, str]:
    waiting = [held for held in finding.plan.held if held.until is not None]
    if finding.at_work:
        first = finding.plan.actions[0]
        return True, "Progressing", f"{_actions(finding.plan)} under way, from {first.id} on: {first.cause}"
    if finding.plan.actions:
        return True, "ChangesPending", f"{len(finding.plan.actions)} actions are due"
    if waiting:
        return True, "Waiting", f"{waiting[0].subject}: {waiting[0].reason}"
    return False, "Converged", "nothing is due"


def _stalled(finding: Finding, serving: ServingStatus | None) -> tuple[bool | None, str, str]:
    if finding.config_error:
        return True, "ConfigError", f"the configuration before goes on: {finding.config_error}"
    stuck = [held for held in finding.plan.held if held.until is None and held.reason not in _WAITING]
    if stuck and (finding.role == "none" or serving is None):
        lost = finding.role == "none"
        return True, stuck[0].reason, "there is no last known good to go back to" if lost else stuck[0].message
    # What was given up for it has no time at which it is looked at again: then something else serves.
    looping = [held for held in finding.plan.held if held.reason == CRASH_LOOPING and held.until is not None]
    if looping:
        return True, CRASH_LOOPING, looping[0].message
    spent = [held for held in finding.plan.held if held.reason == SPENT]
    if spent:
        return True, SPENT, f"{spent[0].subject}: {spent[0].message}"
    return False, "Progressing", "nothing needs a person"


def _source(finding: Finding) -> tuple[bool | None, str, str]:
    error = finding.source.error
    value = None if error is not None and error.retry == "backoff" else finding.source.verified
    return value, finding.source.reason, finding.source.message


def _drifted(finding: Finding) -> tuple[bool | None, str, str]:
    if finding.plan.drift:
        return True, "NotRepaired", f"changed outside: {_drift_said(finding.plan.drift)}"
    if finding.drift:
        return False, "Repaired", f"what had changed from outside was repaired: {_drift_said(finding.drift)}"
    return False, "AsApplied", "nothing was changed from outside"


def _actions(plan: Plan) -> str:
    count = len(plan.actions)
    return f"{count} action{'s are' if count != 1 else ' is'}"


def _next(coming: Next) -> NextStatus:
    known = (
        ComingStatus(at=item.at.replace(microsecond=0), why=item.why[:4096]) for item in coming.coming[:MOST_COMING]
    )
    return NextStatus(at=coming.at.replace(microsecond=0), why=coming.why[:4096], coming=tuple(known))


def _drift_said(drift: tuple[Drift, ...]) -> str:
    return "; ".join(item.said for item in drift)


def _rolled_back(finding: Finding) -> tuple[bool | None, str, str]:
    if finding.role != "last-known-good" or finding.target is None:
        return False, "AsWanted", "no way back was taken"
    held = finding.plan.held[0] if finding.plan.held else None
    why = f"{held.reason}: {held.message}" if held else "the snapshot's wish cannot be followed"
    return True, held.reason if held else "RolledBack", f"{finding.target.model} serves instead ({why})"


def _suspended(finding: Finding) -> tuple[bool | None, str, str]:
    reason = finding.observed.memory.suspended
    return (True, "ByOperator", reason) if reason else (False, "Active", "changes are applied")


def _is(status: NodeStatus, type_: ConditionType) -> bool:
    condition = status.condition(type_)
    return condition is not None and condition.status == "True"


# --- facts --------------------------------------------------------------------------------------------------------


def _snapshot(accepted: Accepted | None) -> SnapshotStatus | None:
    if accepted is None:
        return None
    return SnapshotStatus(
        digest=accepted.digest,
        epoch=accepted.epoch,
        sequence=accepted.sequence,
        signers=accepted.signers,
        expires_at=accepted.expires_at,
        accepted_at=accepted.accepted_at,
    )


def _serving(finding: Finding) -> ServingStatus | None:
    """What runs, with the receipt that it holds for exactly what it is."""
    good = finding.observed.memory.last_known_good
    candidates = [target for target in (finding.target, good.target if good else None) if target is not None]
    for target in candidates:
        for instance in _running(finding.observed):
            if instance.backend == target.backend and instance.spec_digest == target.spec_digest:
                return _serving_status(finding, target, instance)
    return None


def _running(observed: Observed) -> list[Instance]:
    return [
        instance
        for _, seen in sorted(observed.state.backends.items())
        if isinstance(seen, Present)
        for instance in seen.value
        if instance.status == "running"
    ]


def _serving_status(finding: Finding, target: ServingTarget, instance: Instance) -> ServingStatus:
    receipt = _receipt(finding, target, instance)
    return ServingStatus(
        model=target.model,
        manifest=target.manifest,
        engine=f"{target.engine} {target.version}",
        mode=target.mode,
        backend=target.backend,
        instance=instance.name,
        socket=str(finding.run_folder / instance.name / SOCKET_NAME),
        # A receipt is a sign of health that no process state can give, unless something is wrong since.
        health=instance.health if receipt is None or instance.health != "unknown" or instance.detail else "healthy",
        since=instance.started_at.replace(microsecond=0) if instance.started_at else None,
        receipt=receipt.digest if receipt else None,
        proof=_proof(finding, target, receipt) if receipt else None,
        not_enforced=finding.not_enforced,
    )


def _proof(finding: Finding, target: ServingTarget, receipt: Receipt) -> ReceiptStatus:
    every = finding.every.get(target.manifest)
    next_ = retest(receipt, every, finding.observed.node_id) if every is not None else None
    return ReceiptStatus(
        number=receipt.number,
        issued_at=receipt.issued_at.replace(microsecond=0),
        strength=receipt.strength,
        signed=receipt.signed,
        retest_from=next_.earliest.replace(microsecond=0) if next_ is not None else None,
        retest_by=next_.latest.replace(microsecond=0) if next_ is not None else None,
    )


def with_receipts(status: NodeStatus, receipts: ReceiptsStatus, *, signed: bool) -> NodeStatus:
    """A status, after receipts were signed.

    Args:
        status: as the pass left it.
        receipts: the chain as it is now.
        signed: whether anything was signed since.
    """
    serving = status.serving
    if serving is not None and serving.proof is not None and signed and not receipts.pending:
        proof = serving.proof.model_copy(update={"signed": True})
        serving = serving.model_copy(update={"proof": proof})
    return status.model_copy(update={"serving": serving, "receipts": receipts})


def _receipt(finding: Finding, target: ServingTarget, instance: Instance) -> Receipt | None:
    subject = target.subject(finding.observed.state.hardware.accelerator)
    receipts = [
        receipt
        for receipt in finding.observed.memory.receipts
        if receipt.subject == subject and receipt.intent == instance.intent
    ]
    return receipts[-1] if receipts else None


def _models(finding: Finding, serving: ServingStatus | None) -> tuple[ModelStatus, ...]:
    stored: Mapping[str, StoredModel] = {
        digest: seen.value
        for digest, seen in finding.observed.state.models.items()
        if isinstance(seen, Present) and isinstance(seen.value, StoredModel)
    }
    served = serving.manifest if serving is not None and serving.receipt is not None else ""
    return tuple(
        _model_status(
            record,
            loaded=digest == served,
            size=stored[digest].size if digest in stored else record.size,
            guarded=digest in stored and stored[digest].guarded,
        )
        for digest, record in sorted(finding.observed.memory.models.items(), key=lambda item: item[1].key)
    )


@lru_cache(maxsize=1024)
def _model_status(record: ModelRecord, *, loaded: bool, size: int, guarded: bool) -> ModelStatus:
    """A daemon says the same of a hundred models at every look: said once, checked once."""
    return ModelStatus(
        model=record.key,
        manifest=record.manifest,
        state=record.state,
        loaded=loaded,
        size=size,
        cause=record.cause[:4096],
        since=record.since.replace(microsecond=0),
        guarded=guarded,
        failures=record.failures,
        not_before=record.not_before.replace(microsecond=0) if record.not_before else None,
        # By the minute: a status that grows by a second at each pass would be written at each pass.
        unlisted_for=record.unlisted_for // 60 * 60,
    )

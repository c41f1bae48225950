"""Validation inference: the commit point of every change. Only a receipt makes a model Active (I2)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from reconciler.kinds.base import Kind
from reconciler.kinds.runtime import instance_name, serving_instance
from reconciler.memory import CommitGood, DropHold, IssueReceipt, Note, model_state
from runtime.interfaces import SOCKET_NAME
from runtime.validation.platform import platform_of
from runtime.validation.run import validate
from schemas.errors import ValidationFailed, ValidationInconclusive
from schemas.observation import LastKnownGood
from schemas.plan import Action, StartInstance, ValidateModel

if TYPE_CHECKING:
    from reconciler.kinds.base import Changes, Context, Draft, Situation
    from schemas.observation import Instance
    from schemas.target import ServingTarget


def diff(situation: Situation, draft: Draft) -> None:
    """Plan a validation of what is about to serve, and of what serves without a valid receipt."""
    target = situation.choice.target
    if target is None:
        return
    start = next((action for action in draft.actions if isinstance(action, StartInstance)), None)
    if start is not None:
        _add(situation, draft, target, "it was just started", (start.id,))
        return
    serving = serving_instance(situation)
    if serving is None or _is_leaving(draft, serving):
        return
    hold = situation.observed.memory.holds.get(target.spec_digest)
    if hold is not None and hold.until > situation.now:
        draft.hold("validation", hold.reason, hold.message, hold.until)
        return
    due = _due(situation, target, serving)
    if due:
        _add(situation, draft, target, due, ())
    else:
        draft.explain("validation", "the serving instance holds a receipt for exactly this subject")


def _add(situation: Situation, draft: Draft, target: ServingTarget, cause: str, needs: tuple[str, ...]) -> None:
    back = situation.choice.role == "last-known-good"
    good = situation.observed.memory.last_known_good
    snapshot = good.snapshot if back and good is not None else situation.desired.digest
    draft.actions.append(
        ValidateModel(
            id=f"validate/{target.model}",
            cause=cause,
            needs=needs,
            target=target,
            role="last-known-good" if back else "desired",
            snapshot=snapshot,
            tasks=_tasks(situation, target),
            inconclusive=_inconclusive(situation),
        )
    )


def _tasks(situation: Situation, target: ServingTarget) -> tuple[str, ...]:
    """What the snapshot says that the model is for; nothing for one that it no longer lists."""
    document = situation.desired.document
    models = document.spec.models if document is not None else ()
    return next((spec.requires.tasks for spec in models if spec.manifest.digest == target.manifest), ())


def _inconclusive(situation: Situation) -> Literal["retry", "reject"]:
    document = situation.desired.document
    return document.spec.policy.validation.inconclusive if document is not None else "retry"


def _is_leaving(draft: Draft, instance: Instance) -> bool:
    return any(action.id == f"stop/{instance.name}" for action in draft.actions)


def _due(situation: Situation, target: ServingTarget, instance: Instance) -> str:
    """Why the serving instance has to be validated now; empty when it has not."""
    subject = target.subject(situation.observed.state.hardware.accelerator)
    receipts = [
        receipt
        for receipt in situation.observed.memory.receipts
        if receipt.subject == subject and receipt.intent == instance.intent
    ]
    if not receipts:
        return "the serving instance has no receipt for this subject"
    newest = max(receipt.issued_at for receipt in receipts)
    spec = next((spec for spec in situation.choice.serve if spec.manifest.digest == target.manifest), None)
    if spec is not None and newest + timedelta(seconds=spec.validation.every) <= situation.now:
        return "the periodic retest is due"
    return ""


def perform(action: Action, context: Context) -> Changes:
    """Run the probe against the serving instance.

    Raises:
        ValidationFailed: it did not answer as expected.
        ValidationInconclusive: its answers do not tell.
        EngineUnreachable: it did not answer.
    """
    if not isinstance(action, ValidateModel):
        raise TypeError(f"not a validation: {action.kind}")
    adapters, target = context.adapters, action.target
    backend, engine = adapters.backends[target.backend], adapters.engines[target.engine]
    intent = context.started or _running_intent(action, context)
    name = instance_name(context.node.network, intent)
    connection = adapters.connect(backend, name, adapters.run_folder / name / SOCKET_NAME)
    probe = adapters.documents.probe(target.probe.digest)
    verdict, _ = validate(
        engine,
        connection,
        probe,
        platform=platform_of(target, context.hardware),
        seed=adapters.ports.randomness.token(16),
        clock=adapters.ports.clock,
        stop=adapters.ports.stop,
        tasks=action.tasks,
    )
    if verdict.outcome == "inconclusive" and action.inconclusive == "retry":
        raise ValidationInconclusive(f"{target.model}: {verdict.message}")
    if verdict.outcome != "pass":
        raise ValidationFailed(f"{target.model}: {verdict.message}")
    now = adapters.ports.clock.now()
    put = model_state(
        context.memory,
        manifest=target.manifest,
        key=target.model,
        state="Active",
        cause=f"passed its probe: {verdict.message}",
        size=0,
        now=now,
    )
    return (
        IssueReceipt(target.subject(context.hardware.accelerator), target.manifest, intent, verdict.evidence),
        put,
        CommitGood(LastKnownGood(target, action.snapshot, now)),
        DropHold(target.spec_digest),
        Note("Normal", "ModelValidated", f"{target.model} {verdict.message}", subject=target.model),
    )


def _running_intent(action: ValidateModel, context: Context) -> str:
    backend = context.adapters.backends[action.target.backend]
    fitting = [
        item for item in backend.list() if item.spec_digest == action.target.spec_digest and item.status == "running"
    ]
    if not fitting:
        raise ValidationFailed(f"{action.target.model}: no instance of it is running")
    return fitting[0].intent


KIND = Kind("validation", (ValidateModel,), diff, perform)

"""Validation inference: the commit point of every change. Only a receipt makes a model Active (I2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from reconciler.kinds.base import Kind
from reconciler.kinds.instances import instance_name
from reconciler.kinds.runtime import serving_instance
from reconciler.memory import CommitGood, DropHold, IssueReceipt, Note, model_state
from reconciler.proof import retest
from reconciler.target import good_for
from reconciler.trial import candidates
from runtime.interfaces import SOCKET_NAME
from runtime.validation.platform import platform_of
from runtime.validation.run import validate
from schemas.errors import ValidationFailed, ValidationInconclusive
from schemas.memory import LastKnownGood
from schemas.plan import Action, StartInstance, ValidateModel
from schemas.receipt import ReceiptSubject

if TYPE_CHECKING:
    from reconciler.kinds.base import Changes, Context, Draft, Situation
    from reconciler.proof import Retest
    from schemas.memory import Receipt
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
        return
    if waits_for_quiet(situation):
        draft.explain("validation", "the retest waits for a quiet moment, until it is overdue")
    draft.explain("validation", "the serving instance holds a receipt for exactly this subject")


def _add(situation: Situation, draft: Draft, target: ServingTarget, cause: str, needs: tuple[str, ...]) -> None:
    role = situation.choice.role
    good = good_for(situation.observed.memory, target) if role == "last-known-good" else None
    draft.actions.append(
        ValidateModel(
            id=f"validate/{target.model}",
            cause=cause,
            needs=needs,
            target=target,
            role="desired" if role == "none" else role,
            snapshot=good.snapshot if good is not None else situation.desired.digest,
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
    receipt = _newest(situation, target, instance)
    if receipt is None:
        return "the serving instance has no receipt for this subject"
    doubt = situation.observed.memory.retests.get(target.manifest)
    if doubt:
        return f"its answers are in doubt: {doubt}"
    when = _retest(situation, target, receipt)
    if when is None or situation.now < when.earliest:
        return ""
    if situation.now >= when.latest:
        return "the periodic retest is due"
    return "the periodic retest is near, and nothing else is asked now" if situation.observed.state.quiet else ""


def waits_for_quiet(situation: Situation) -> bool:
    """Whether it matters to the next decision that what serves has nothing to do: so that nobody asks it in vain."""
    target = situation.choice.target
    serving = serving_instance(situation)
    if target is None or serving is None:
        return False
    receipt = _newest(situation, target, serving)
    when = _retest(situation, target, receipt) if receipt is not None else None
    near = when is not None and when.earliest <= situation.now < when.latest
    return near or bool(candidates(situation.choice, situation.desired, situation.observed, situation.now))


def _newest(situation: Situation, target: ServingTarget, instance: Instance) -> Receipt | None:
    subject = target.subject(situation.observed.state.hardware.accelerator)
    receipts = [
        receipt
        for receipt in situation.observed.memory.receipts
        if receipt.subject == subject and receipt.intent == instance.intent
    ]
    return max(receipts, key=lambda receipt: receipt.number, default=None)


def _retest(situation: Situation, target: ServingTarget, receipt: Receipt) -> Retest | None:
    """When it is tested again; None for what the snapshot does not list any more."""
    spec = next((spec for spec in situation.choice.serve if spec.manifest.digest == target.manifest), None)
    return retest(receipt, spec.validation.every, situation.observed.node_id) if spec is not None else None


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
        raise ValidationFailed(f"{target.model}: {verdict.message}", evidence=verdict.evidence)
    now = adapters.ports.clock.now()
    put = model_state(
        context.memory,
        manifest=target.manifest,
        key=target.model,
        state="Active",
        cause=f"passed its probe: {verdict.message}",
        size=0,
        now=now,
        proven=True,
    )
    subject = ReceiptSubject.of(target, context.hardware)
    changes: Changes = (
        IssueReceipt(subject, intent, verdict.evidence, verdict.message, strength=verdict.strength),
        put,
        DropHold(target.spec_digest),
        Note("Normal", "ModelValidated", f"{target.model} {verdict.message}", subject=target.model),
    )
    if action.role == "trial":
        return changes  # what has only been tried is not what this node goes back to
    return (*changes, CommitGood(LastKnownGood(target, action.snapshot, now)))


def _running_intent(action: ValidateModel, context: Context) -> str:
    backend = context.adapters.backends[action.target.backend]
    fitting = [
        item for item in backend.list() if item.spec_digest == action.target.spec_digest and item.status == "running"
    ]
    if not fitting:
        raise ValidationFailed(f"{action.target.model}: no instance of it is running")
    return fitting[0].intent


KIND = Kind("validation", (ValidateModel,), diff, perform)

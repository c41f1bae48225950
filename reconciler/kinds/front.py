"""The front: takes clients whatever serves, and leads them only to what has passed its probe (I2, I3)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler.kinds.base import Kind
from reconciler.kinds.instances import instance_name
from reconciler.kinds.runtime import serving_instance
from reconciler.memory import DropHold, Note
from runtime.front.route import Route
from runtime.interfaces import SOCKET_NAME
from schemas.observation import Present, Unknown
from schemas.plan import Action, RouteFront, StartFront, StartInstance, StopInstance, ValidateModel, VerifyModel
from schemas.policy import JobPolicy
from schemas.target import FrontLimits

if TYPE_CHECKING:
    from reconciler.kinds.base import Changes, Context, Draft, Situation
    from schemas.observation import FrontSeen, Instance
    from schemas.target import ServingTarget

START_ID: Final = "front"
PEER_SECONDS: Final = 5.0
"""To ask who listens on a socket; it takes less than a millisecond."""

# --- deciding -----------------------------------------------------------------------------------------------------


def diff(situation: Situation, draft: Draft) -> None:
    """Plan a front that takes clients, and where it leads them."""
    seen = situation.observed.state.front
    if seen is None:
        return
    if not isinstance(seen, Present):
        reason = seen.reason if isinstance(seen, Unknown) else "it is not there"
        draft.hold("front", "BackendUnavailable", f"the front cannot be seen: {reason}")
        return
    before = len(draft.actions)
    unknown = any(isinstance(item, Unknown) for item in situation.observed.state.backends.values())
    # Whoever is only being validated takes no clients: theirs wait for what comes back.
    if not unknown and situation.choice.role != "trial":
        _lead(situation, draft, seen.value)
    # Where nothing has served yet and nothing is about to, nobody needs an address.
    needed = seen.value.state != "none" or len(draft.actions) > before
    if needed and not seen.value.current and not _is_held(situation, draft, START_ID):
        cause = "no front with this agent's program and settings takes clients"
        draft.actions.insert(before, StartFront(id=START_ID, cause=cause))


def _lead(situation: Situation, draft: Draft, seen: FrontSeen) -> None:
    start = next((action for action in draft.actions if isinstance(action, StartInstance)), None)
    check = next((action for action in draft.actions if isinstance(action, ValidateModel)), None)
    led = _proven(situation, draft)
    if led is not None:
        target, instance = led
        cause = _why_led(seen, instance, _limits(situation, seen))
        if cause:
            # Proof of a model that is about to be hashed again is proof only if that goes well (I2).
            checks = (item for item in draft.actions if isinstance(item, VerifyModel))
            needs = tuple(item.id for item in checks if item.manifest.digest == target.manifest)
            _add(situation, draft, seen, target, instance.intent, cause, needs)
    elif start is not None and check is not None:
        _add(situation, draft, seen, start.target, "", "it has passed its probe", (check.id,))
    elif check is not None and (unproven := serving_instance(situation)) is not None:
        _add(situation, draft, seen, check.target, unproven.intent, "it has passed its probe", (check.id,))
    elif seen.state != "none" and not _goes_on(situation, draft, seen.intent):
        _add(situation, draft, seen, None, "", "nothing serves", _stops(draft))


def _add(
    situation: Situation,
    draft: Draft,
    seen: FrontSeen,
    target: ServingTarget | None,
    intent: str,
    cause: str,
    needs: tuple[str, ...],
) -> None:
    id_ = f"route/{target.model if target is not None else 'nothing'}"
    if not _is_held(situation, draft, id_):
        limits = _limits(situation, seen)
        action = RouteFront(id=id_, cause=cause, needs=needs, target=target, intent=intent, limits=limits)
        draft.actions.append(action)


def _is_held(situation: Situation, draft: Draft, id_: str) -> bool:
    hold = situation.observed.memory.holds.get(id_)
    if hold is None or hold.until <= situation.now:
        return False
    draft.hold("front", hold.reason, hold.message, hold.until)
    return True


def _limits(situation: Situation, seen: FrontSeen) -> FrontLimits:
    """The network's limits with the owner's; those in force where no snapshot says any."""
    document = situation.desired.document
    if document is None and seen.limits is not None:
        return seen.limits
    jobs = document.spec.policy.jobs if document is not None else JobPolicy()
    return FrontLimits(
        max_tokens=jobs.max_tokens,
        max_queue=jobs.max_queue,
        timeout=jobs.timeout,
        hold=situation.node.front.hold,
    )


def _proven(situation: Situation, draft: Draft) -> tuple[ServingTarget, Instance] | None:
    """What runs, stays, and holds a receipt for exactly what it is: the target, or else the last known good."""
    target, good = situation.choice.target, situation.observed.memory.last_known_good
    keep = serving_instance(situation)
    if target is not None and keep is not None and _has_receipt(situation, target, keep) and _stays(draft, keep):
        return target, keep
    if good is None:
        return None
    for instance in situation.observed.state.instances:
        if (
            (instance.backend, instance.spec_digest) == (good.target.backend, good.target.spec_digest)
            and (instance.status, instance.health != "unhealthy") == ("running", True)
            and _has_receipt(situation, good.target, instance)
            and _stays(draft, instance)
        ):
            return good.target, instance
    return None


def _has_receipt(situation: Situation, target: ServingTarget, instance: Instance) -> bool:
    subject = target.subject(situation.observed.state.hardware.accelerator)
    receipts = situation.observed.memory.receipts
    return any(receipt.subject == subject and receipt.intent == instance.intent for receipt in receipts)


def _stays(draft: Draft, instance: Instance) -> bool:
    if instance in draft.retiring:
        return False
    return not any(isinstance(item, StopInstance) and item.instance == instance.name for item in draft.actions)


def _goes_on(situation: Situation, draft: Draft, intent: str) -> bool:
    """Whether the instance that is led to runs on, for want of anything better."""
    return any(
        item.intent == intent and item.status == "running" and _stays(draft, item)
        for item in situation.observed.state.instances
    )


def _stops(draft: Draft) -> tuple[str, ...]:
    return tuple(action.id for action in draft.actions if isinstance(action, StopInstance))


def _why_led(seen: FrontSeen, instance: Instance, limits: FrontLimits) -> str:
    if seen.intent != instance.intent or seen.state == "none":
        return "it serves, and requests are not led to it"
    if seen.state == "holding":
        return "it goes on serving, and requests wait"
    return "" if seen.limits == limits else "the limits on requests have changed"


# --- doing --------------------------------------------------------------------------------------------------------


def perform(action: Action, context: Context) -> Changes:
    """Start the front, or lead it."""
    front = context.adapters.front
    if front is None or not isinstance(action, StartFront | RouteFront):
        raise TypeError(f"not an action on a front: {action.kind}")
    if isinstance(action, StartFront):
        front.ensure()
        return (DropHold(action.id), Note("Normal", "FrontStarted", f"clients are taken at {front.address}"))
    limits = action.limits
    nowhere = Route(max_tokens=limits.max_tokens, max_queue=limits.max_queue, timeout=limits.timeout, hold=limits.hold)
    if action.target is None:
        front.lead(nowhere)
        return (DropHold(action.id), Note("Warning", "FrontClosed", "requests are refused: nothing serves"))
    target, adapters = action.target, context.adapters
    intent = action.intent or context.started
    name = instance_name(context.node.network, intent)
    socket = adapters.run_folder / name / SOCKET_NAME
    connection = adapters.connect(adapters.backends[target.backend], name, socket)
    route = replace(
        nowhere,
        state="serving",
        instance=name,
        intent=intent,
        engine=target.engine,
        socket=str(socket),
        pid=connection.peer(timeout=PEER_SECONDS),
        # By its exact name, or without a version: whichever version serves.
        models=(target.model, target.model.partition(":")[0]),
    )
    front.lead(route)
    message = f"requests are led to {name}, which runs {target.model}"
    return (DropHold(action.id), Note("Normal", "FrontRouted", message, subject=target.model))


KIND = Kind("front", (StartFront, RouteFront), diff, perform)

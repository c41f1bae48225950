"""The runtime: one instance, of the chosen target, replaced only when its replacement is staged (I3, I4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler import drift, restarts
from reconciler.gpus import allot
from reconciler.kinds.base import Kind, waits
from reconciler.kinds.instances import is_serving, perform
from reconciler.memory import RESTART_BUDGET, RESTART_WINDOW
from reconciler.overlap import why_not_fitting, why_not_permitted
from reconciler.target import good_for, has_way_back, withdrawn
from schemas.memory import Hold
from schemas.observation import Present, Unknown
from schemas.plan import CRASH_LOOPING, CreateInstance, MendInstance, StartInstance, StopInstance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reconciler.kinds.base import Draft, Situation
    from schemas.observation import Instance
    from schemas.target import ServingTarget

# --- deciding -----------------------------------------------------------------------------------------------------


def diff(situation: Situation, draft: Draft) -> None:
    """Plan the stop of what should not run and the start of what should."""
    unknown = [
        (name, seen.reason)
        for name, seen in sorted(situation.observed.state.backends.items())
        if isinstance(seen, Unknown)
    ]
    instances = situation.observed.state.instances
    ours = [item for item in instances if item.intent in situation.observed.memory.intents]
    foreign = [item for item in instances if item.intent not in situation.observed.memory.intents]
    keep = serving_instance(situation)
    _stop_withdrawn(situation, draft, ours)
    if unknown:
        for name, reason in unknown:
            draft.hold("runtime", "BackendUnavailable", f"{name} may hold an instance and cannot be seen: {reason}")
        return
    blocking = [item for item in foreign if item is not keep and item.status == "running"]
    if blocking:
        names = ", ".join(item.name for item in blocking)
        draft.hold("runtime", "ForeignInstance", f"{names} carries this node's marks, but its journal does not know it")
        return
    if situation.choice.target is None:
        _settle_without_target(situation, draft, ours)
    else:
        _settle(situation, draft, ours, keep, situation.choice.target)


def serving_instance(situation: Situation) -> Instance | None:
    """The instance that is what the target says, and whose model has not failed since it was started."""
    target = situation.choice.target
    if target is None:
        return None
    receipts = {receipt.intent for receipt in situation.observed.memory.receipts}
    fitting = [
        item
        for item in situation.observed.state.instances
        if item.backend == target.backend
        and item.spec_digest == target.spec_digest
        and item.status == "running"
        and item.health != "unhealthy"
        and not _is_tainted(situation, item, target)
        and not _is_altered(situation, item)
    ]
    # The one that has proven itself wins over one that has not.
    return min(fitting, key=lambda item: (item.intent not in receipts, item.name), default=None)


def _is_tainted(situation: Situation, item: Instance, target: ServingTarget) -> bool:
    """Whether the model failed a check after the instance was started: it may have mapped wrong bytes (I2)."""
    record = situation.observed.memory.models.get(target.manifest)
    if record is None or item.started_at is None or record.doubted_at is None:
        return False
    return item.started_at < record.doubted_at


def _is_altered(situation: Situation, item: Instance) -> bool:
    """Whether somebody else has changed what can only be given back by replacing it, and it is worth doing again."""
    altered = [one for one in item.changed if not one.mendable]
    return bool(altered) and drift.spent(situation, "runtime", altered) is None


def _mend(situation: Situation, draft: Draft, keep: Instance) -> None:
    """Give back what somebody else has changed of what serves, as long as that lasts."""
    if not keep.changed:
        return
    held = drift.spent(situation, "runtime", keep.changed)
    if held is not None:
        draft.held.append(held)
        return
    action = MendInstance(
        id=f"mend/{keep.name}",
        cause=drift.cause(keep.changed),
        backend=keep.backend,  # type: ignore[arg-type] # checked by the model at run time
        instance=keep.name,
        intent=keep.intent,
        fields=tuple(one.field for one in keep.changed),
    )
    hold = situation.observed.memory.holds.get(action.id)
    if hold is not None and hold.until > situation.now:
        draft.hold("runtime", hold.reason, hold.message, hold.until)
    else:
        draft.actions.append(action)


def _stop_withdrawn(situation: Situation, draft: Draft, ours: Sequence[Instance]) -> None:
    document = situation.desired.document
    good = situation.observed.memory.last_known_good
    if document is None or good is None or not situation.desired.verified:
        return
    reason = withdrawn(document, good.target)
    for item in ours:
        if reason and item.spec_digest == good.target.spec_digest:
            draft.actions.append(stop(item, f"withdrawn by the network: {reason}", drain=0, needs=()))


def _settle_without_target(situation: Situation, draft: Draft, ours: Sequence[Instance]) -> None:
    if not situation.choice.assigned:
        draft.explain("runtime", "nothing is assigned to this node: what runs is kept")
        return
    good = situation.observed.memory.last_known_good
    receipts = {receipt.intent for receipt in situation.observed.memory.receipts}
    for item in ours:
        good_spec = good is not None and item.spec_digest == good.target.spec_digest
        # One that has failed its retest is the last known good by name only.
        proven = good_spec and item.status == "running" and item.intent in receipts
        if not proven and not _is_planned(draft, item):
            draft.actions.append(stop(item, "it is not approved, and there is nothing to go back to", 0, ()))


def _settle(
    situation: Situation, draft: Draft, ours: Sequence[Instance], keep: Instance | None, target: ServingTarget
) -> None:
    surplus = [item for item in ours if item is not keep and not _is_planned(draft, item)]
    dead = [item for item in surplus if not is_serving(item)]
    alive = [item for item in surplus if is_serving(item)]
    clean_up = [_clear_away(situation, item, target) for item in dead]
    if keep is not None:
        draft.actions.extend(clean_up)
        _settle_surplus(situation, draft, keep, alive, target)
        _mend(situation, draft, keep)
        draft.explain("runtime", f"{keep.name} runs as wanted")
        return
    alive, others = _one_of(situation, alive)
    clean_up += [stop(item, "one runtime per node: another instance serves", 0, ()) for item in others]
    if not _may_start(situation, draft, target, clean_up, serving=bool(alive)):
        draft.actions.extend(clean_up)
        # What holds a receipt goes on serving until its replacement can come; what does not has no right to run (I2).
        proven = {receipt.intent for receipt in situation.observed.memory.receipts}
        unproven = [item for item in alive if item.intent not in proven]
        draft.actions.extend(stop(item, "it has not passed its probe, and is not wanted", 0, ()) for item in unproven)
        return
    draft.actions.extend(clean_up)
    against = _why_not_beside(situation, draft, alive, target)
    beside = bool(alive) and not against
    # Whatever is stopped, what was withdrawn included, has stopped before anything is started in its place (I3).
    stopped = [action.id for action in draft.actions if isinstance(action, StopInstance)]
    before = [*draft.staging, *stopped]
    gpus = allot(target, situation.observed.state.hardware).uuids
    stops: list[StopInstance] = []
    if beside:
        draft.retiring.extend(alive)
    elif alive:
        # Made while the old one serves: what the backend refuses costs no service, and what it takes no time.
        made = CreateInstance(
            id=f"create/{target.model}",
            cause="secured before what serves is stopped",
            needs=tuple(before),
            target=target,
            tried_again=_is_tried_again(situation, target),
            gpus=gpus,
        )
        draft.actions.append(made)
        before.append(made.id)
        needs = (*draft.staging, made.id)
        drain = target.timeouts.drain
        stops = [stop(item, _why_replaced(situation, item, target), drain, needs) for item in alive]
    draft.actions.extend(stops)
    draft.actions.append(
        StartInstance(
            id=f"start/{target.model}",
            cause=_why_started(situation, dead, alive),
            needs=(*before, *(action.id for action in stops)),
            target=target,
            role="desired" if situation.choice.role == "none" else situation.choice.role,
            strategy="overlap" if beside else "replace" if alive else "first",
            strategy_reason="snapshot and owner allow two at once, and both fit" if beside else against,
            tried_again=_is_tried_again(situation, target),
            gpus=gpus,
        )
    )


def _clear_away(situation: Situation, item: Instance, target: ServingTarget) -> StopInstance:
    """The stop of what ended, went bad, or was never started."""
    action = stop(item, _why_dead(item), 0, ())
    if item.status == "created":
        return action
    failures = restarts.ends(item, situation.observed.memory, situation.now)
    document, loops = situation.desired.document, failures >= restarts.BUDGET and item.spec_digest == target.spec_digest
    back = document is not None and loops and has_way_back(document, situation.observed, target, situation.node)
    return action.model_copy(update={"failed": True, "failures": failures, "gives_up": target if back else None})


def _settle_surplus(
    situation: Situation, draft: Draft, keep: Instance, alive: Sequence[Instance], target: ServingTarget
) -> None:
    """Beside what is wanted others run: after a crash, an overlap is brought to its end; anything else is stopped."""
    proven = {receipt.intent for receipt in situation.observed.memory.receipts}
    only_tried = situation.choice.role == "trial"
    if len(alive) == 1 and not only_tried and not why_not_permitted(situation, alive[0], target):
        draft.retiring.extend(alive)
        draft.explain("runtime", f"{alive[0].name} serves on until requests are led to {keep.name}")
        return
    for item in alive:
        # What has served may still be answering; what has not has nobody to answer.
        drain = target.timeouts.drain if item.intent in proven else 0
        draft.actions.append(stop(item, "one runtime per node: another instance serves", drain, ()))


def _one_of(situation: Situation, alive: Sequence[Instance]) -> tuple[list[Instance], list[Instance]]:
    """Of several that run, none of them wanted any more: the one that serves, and those that nobody waits for."""
    seen = situation.observed.state.front
    led = seen.value.intent if isinstance(seen, Present) else ""
    proven = {receipt.intent for receipt in situation.observed.memory.receipts}
    ordered = sorted(alive, key=lambda item: (item.intent != led, item.intent not in proven, item.name))
    return ordered[:1], ordered[1:]


def _why_not_beside(situation: Situation, draft: Draft, alive: Sequence[Instance], target: ServingTarget) -> str:
    """Why the target is not started beside what serves; empty where it is, or where nothing serves."""
    if not alive:
        return ""
    if situation.choice.role == "trial":
        return "it is only validated, and what serves comes back"
    why = why_not_permitted(situation, alive[0], target) or why_not_fitting(situation, draft, target)
    draft.explain(
        "runtime", f"replace: {why}" if why else "overlap: started beside what serves, which stops afterwards"
    )
    return why


def _may_start(
    situation: Situation, draft: Draft, target: ServingTarget, clean_up: Sequence[StopInstance], *, serving: bool
) -> bool:
    memory = situation.observed.memory
    if waiting := _backoffs(situation, target, clean_up):
        last = max(waiting, key=lambda hold: hold.until)
        draft.hold("runtime", last.reason, last.message, last.until)
        return False
    if draft.blocked:
        draft.explain("runtime", "waits for what it needs: what serves goes on")
        return False
    lacking = allot(target, situation.observed.state.hardware)
    if lacking.reason:
        draft.hold("runtime", lacking.reason, lacking.message)
        return False
    good = memory.last_known_good
    # Coming back to what has served is no change that would have to wait.
    back = good is not None and good.target.spec_digest == target.spec_digest
    swaps = serving and situation.choice.role == "desired" and not back
    return not (swaps and waits(situation, draft, "swap", "runtime", "the swap waits for its window"))


def _is_tried_again(situation: Situation, target: ServingTarget) -> bool:
    """Whether a start that fails says nothing about the target: it has served, and its budget is not used up."""
    memory, document = situation.observed.memory, situation.desired.document
    if good_for(memory, target) is None or document is None:
        return False
    hold = memory.holds.get(target.spec_digest)
    used_up = hold is not None and hold.failures + 1 >= restarts.BUDGET
    return not (used_up and has_way_back(document, situation.observed, target, situation.node))


def _backoffs(situation: Situation, target: ServingTarget, clean_up: Sequence[StopInstance]) -> list[Hold]:
    """Why the target is not started yet: starts that failed, ends by itself, and starts in all."""
    memory, now, spec = situation.observed.memory, situation.now, target.spec_digest
    found = (memory.holds.get(spec), restarts.pending(spec, memory, now))
    remembered = [hold for hold in found if hold is not None]
    for item in clean_up:
        if item.spec_digest == spec and item.failures:
            # The journal knows of it, and of its exact wait, once it has been cleared away.
            until = now + restarts.wait(item.failures)
            why = restarts.told(item.failures, item.cause)
            remembered.append(Hold(spec, restarts.reason(item.failures), why, item.failures, until))
    starts = [at for at in memory.recent_starts.get(spec, ()) if at > now - RESTART_WINDOW]
    if len(starts) >= RESTART_BUDGET:
        message = f"{target.model} was started {len(starts)} times in {RESTART_WINDOW.seconds // 60} minutes"
        remembered.append(Hold(spec, CRASH_LOOPING, message, len(starts), min(starts) + RESTART_WINDOW))
    return [hold for hold in remembered if hold.until > now]


def stop(item: Instance, cause: str, drain: int, needs: tuple[str, ...]) -> StopInstance:
    """The stop of an instance, after whatever it needs.

    Args:
        item: the instance.
        cause: why.
        drain: seconds that its requests may take to end.
        needs: ids of the actions that come first.
    """
    return StopInstance(
        id=f"stop/{item.name}",
        cause=cause,
        needs=needs,
        backend=item.backend,  # type: ignore[arg-type] # checked by the model at run time
        instance=item.name,
        intent=item.intent,
        spec_digest=item.spec_digest,
        drain=drain,
    )


def _is_planned(draft: Draft, item: Instance) -> bool:
    return any(isinstance(action, StopInstance) and action.instance == item.name for action in draft.actions)


def _why_dead(item: Instance) -> str:
    if item.status == "created":
        return "it was created and never started"
    if item.status == "running":
        return f"it is unhealthy{': ' + item.detail if item.detail else ''}"
    ended = item.detail or (f"exit code {item.exit_code}" if item.exit_code is not None else "it ended")
    return f"it is no longer running ({ended})"


def _why_replaced(situation: Situation, item: Instance, target: ServingTarget) -> str:
    if situation.choice.role == "last-known-good":
        held = situation.choice.held[0] if situation.choice.held else None
        return f"goes back to {target.model}" + (f": {held.reason}" if held else "")
    if situation.choice.role == "trial":
        return f"makes room for the first validation of {target.model}, and comes back"
    altered = [one for one in item.changed if not one.mendable]
    if item.spec_digest == target.spec_digest and altered:
        return drift.cause(altered)
    if item.spec_digest == target.spec_digest:
        return "its model failed a check after it was started"
    return f"{target.model} should serve instead"


def _why_started(situation: Situation, dead: Sequence[Instance], alive: Sequence[Instance]) -> str:
    if situation.choice.role == "last-known-good":
        return "the last known good comes back"
    if situation.choice.role == "trial":
        return "it is installed and has never been validated; the policy asks for it"
    if alive:
        return "the snapshot wants it to serve"
    if dead:
        return f"replaces {dead[0].name}: {_why_dead(dead[0])}"
    return "nothing serves"


KIND = Kind("runtime", (StopInstance, MendInstance, CreateInstance, StartInstance), diff, perform)

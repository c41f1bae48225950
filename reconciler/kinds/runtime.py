"""The runtime: one instance, of the chosen target, replaced only when its replacement is staged (I3, I4)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler import drift, restarts
from reconciler.gpus import allot, needed_memory
from reconciler.kinds.base import Kind, waits
from reconciler.memory import RESTART_BUDGET, RESTART_WINDOW, DropHold, Note
from reconciler.overlap import why_not_fitting, why_not_permitted
from reconciler.target import good_for, has_way_back, withdrawn
from runtime import logs
from runtime.gpu_release import await_release
from runtime.interfaces import SOCKET_NAME, InstanceSpec
from runtime.starting import start_instance
from schemas.errors import BackendUnavailable, StartFailed
from schemas.observation import Hold, Present, Unknown
from schemas.plan import CRASH_LOOPING, Action, CreateInstance, MendInstance, StartInstance, StopInstance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reconciler.kinds.base import Adapters, Changes, Context, Draft, Situation
    from schemas.observation import Instance
    from schemas.target import ServingTarget

END_SECONDS: Final = 5.0
"""Given to an engine that has nothing left to answer, to end by itself."""

# --- deciding -----------------------------------------------------------------------------------------------------


def diff(situation: Situation, draft: Draft) -> None:
    """Plan the stop of what should not run and the start of what should."""
    unknown = [
        (name, seen.reason)
        for name, seen in sorted(situation.observed.state.backends.items())
        if isinstance(seen, Unknown)
    ]
    instances = _instances(situation)
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


def _instances(situation: Situation) -> list[Instance]:
    return [
        instance
        for _, seen in sorted(situation.observed.state.backends.items())
        if isinstance(seen, Present)
        for instance in seen.value
    ]


def serving_instance(situation: Situation) -> Instance | None:
    """The instance that is what the target says, and whose model has not failed since it was started."""
    target = situation.choice.target
    if target is None:
        return None
    receipts = {receipt.intent for receipt in situation.observed.memory.receipts}
    fitting = [
        item
        for item in _instances(situation)
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
    dead = [item for item in surplus if not _is_serving(item)]
    alive = [item for item in surplus if _is_serving(item)]
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
    before = [*draft.staging, *(action.id for action in clean_up)]
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
    back = document is not None and loops and has_way_back(document, situation.observed, target)
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
    return not (used_up and has_way_back(document, situation.observed, target))


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


def _is_serving(item: Instance) -> bool:
    return item.status == "running" and item.health != "unhealthy"


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


# --- doing --------------------------------------------------------------------------------------------------------


def perform(action: Action, context: Context) -> Changes:
    """Create, start or stop an instance."""
    if isinstance(action, StopInstance):
        return _perform_stop(action, context)
    if isinstance(action, CreateInstance):
        return _perform_create(action, context)
    if isinstance(action, StartInstance):
        return _perform_start(action, context)
    if isinstance(action, MendInstance):
        context.adapters.backends[action.backend].mend(action.instance)
        message = f"{action.instance} was given back its {', '.join(action.fields)}: {action.cause}"
        return (DropHold(action.id), Note("Normal", "InstanceMended", message[:4096], subject=action.instance))
    raise TypeError(f"not an action on instances: {action.kind}")


def instance_name(network: str, intent: str) -> str:
    """The name of the instance that an intent creates; deterministic, so that a crash cannot create two."""
    return f"reconcile-{network[:40]}-{intent}"


def _perform_stop(action: StopInstance, context: Context) -> Changes:
    backend = context.adapters.backends[action.backend]
    left, grace = _drain(action, context)
    backend.stop(action.instance, grace=grace)
    backend.remove(action.instance)
    context.adapters.ports.files.remove(context.adapters.run_folder / action.instance)
    message = f"{action.instance} was stopped: {action.cause}"
    if left:
        message += f"; {left} requests had not been answered within {action.drain} s, and were cut"
    if action.failed:
        message = (
            f"{action.instance} failed: {action.cause}; what it printed is kept (`reconcile logs {action.instance}`)"
        )
        note = Note("Warning", "InstanceFailed", message, subject=action.instance)
        ports = context.adapters.ports
        share = ports.randomness.uniform(1 - restarts.SPREAD, 1 + restarts.SPREAD)
        left_behind = restarts.after_end(
            action,
            hardware=context.hardware,
            snapshot=context.snapshot,
            share=share,
            now=ports.clock.now(),
        )
        return (note, *left_behind)
    return (Note("Normal", "InstanceStopped", message, subject=action.instance),)


def _drain(action: StopInstance, context: Context) -> tuple[int, float]:
    """Let new requests wait, and those in flight end: what is left at the deadline, and the seconds to end within."""
    front, clock = context.adapters.front, context.adapters.ports.clock
    if front is None:
        return 0, action.drain
    begun = clock.monotonic()
    try:
        led = front.hold(action.instance)
    except StartFailed:
        # A route that cannot be written leads to a socket where soon nobody listens, and there requests wait as well.
        led = True
    if not action.drain:
        return 0, 0.0
    # What is no longer led to may still be answering: requests were led over to its replacement while it did.
    if not led and not front.drain(action.instance, seconds=0):
        return 0, min(action.drain, END_SECONDS)
    left = front.drain(action.instance, seconds=action.drain)
    return left, max(action.drain - (clock.monotonic() - begun), min(action.drain, END_SECONDS))


def _perform_create(action: CreateInstance, context: Context) -> Changes:
    backend = context.adapters.backends[action.target.backend]
    spec = _prepare(action, context, context.intent)
    backend.create(spec)
    message = f"{spec.name} was created for {action.target.model}, to be started when nothing else serves"
    return (Note("Normal", "InstanceCreated", message, subject=spec.name),)


def _perform_start(action: StartInstance, context: Context) -> Changes:
    target, adapters = action.target, context.adapters
    backend = adapters.backends[target.backend]
    engine = adapters.engines[target.engine]
    spec = _prepare(action, context, context.created or context.intent)
    connection = adapters.connect(backend, spec.name, spec.socket_folder / SOCKET_NAME)
    _await_gpus(action, context)
    start_instance(backend, engine, spec, connection, clock=adapters.ports.clock, stop=adapters.ports.stop)
    message = f"{spec.name} runs {target.model} on {target.engine} {target.version} ({target.backend})"
    return (Note("Normal", "InstanceStarted", message, subject=spec.name),)


def _await_gpus(action: StartInstance, context: Context) -> None:
    """Wait until nothing that was stopped is on the GPUs any more (`GpuNotFree` where it stays)."""
    adapters, gpus = context.adapters, context.hardware.gpus
    if adapters.machine is None or not action.gpus:
        return
    needs = {gpu.uuid: needed_memory(action.target, gpu) for gpu in gpus if gpu.uuid in action.gpus}
    running = {item.name for backend in adapters.backends.values() for item in backend.list() if _is_serving(item)}
    # As they were seen when the plan was made, when what has been stopped since still ran.
    leaving = {
        process.pid: process.instance
        for gpu in gpus
        for process in gpu.processes or ()
        if process.instance and process.instance not in running
    }
    await_release(adapters.machine, needs, leaving=leaving, clock=adapters.ports.clock, stop=adapters.ports.stop)


def _prepare(action: CreateInstance | StartInstance, context: Context, intent: str) -> InstanceSpec:
    """The instance of an intent, with its folders."""
    adapters, target = context.adapters, action.target
    backend = adapters.backends[target.backend]
    model = adapters.documents.model(target.manifest)
    name = instance_name(context.node.network, intent)
    socket_folder = adapters.run_folder / name
    model_folder = adapters.store.folder(target.manifest)
    view = backend.view(model_folder=model_folder, socket_folder=socket_folder)
    if target.lock is not None and target.environment is not None:
        view = replace(view, python=str(adapters.environments.python(target.environment)))
    if not context.created:
        _sweep(adapters, context.node.network)
        adapters.ports.files.make_folder(socket_folder, mode=0o711)
        adapters.ports.files.make_folder(adapters.log_folder / name, mode=0o700)
    return InstanceSpec(
        name=name,
        intent=intent,
        network=context.node.network,
        node_id=context.node_id,
        target=target,
        launch=adapters.engines[target.engine].launch(target, model.manifest, view),
        model_folder=model_folder,
        socket_folder=socket_folder,
        log_folder=adapters.log_folder / name,
        log_limit=context.node.log_limit,
        gpus=action.gpus,
    )


def _sweep(adapters: Adapters, network: str) -> None:
    """Remove what is left of instances that are gone: socket folders (I7), and the oldest logs."""
    try:
        known = {instance.name for backend in adapters.backends.values() for instance in backend.list()}
    except BackendUnavailable:
        return  # whose they are cannot be told now (I3)
    logs.prune(adapters.log_folder, known, adapters.ports.files)
    for folder in adapters.run_folder.glob(instance_name(network, "*")):
        # A mounted one is the backend's to release first.
        if folder.name not in known and not folder.is_mount():
            adapters.ports.files.remove(folder)


KIND = Kind("runtime", (StopInstance, MendInstance, CreateInstance, StartInstance), diff, perform)

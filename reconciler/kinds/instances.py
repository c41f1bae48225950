"""Creates, starts, mends and stops instances, as `runtime` plans it: draining, waiting for GPUs, sweeping up."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reconciler import restarts
from reconciler.gpus import needed_memory
from reconciler.memory import DropHold, Note
from runtime import logs
from runtime.gpu_release import await_release
from runtime.interfaces import SOCKET_NAME, InstanceSpec
from runtime.starting import start_instance
from schemas.errors import BackendUnavailable, StartFailed
from schemas.plan import Action, CreateInstance, MendInstance, StartInstance, StopInstance

if TYPE_CHECKING:
    from reconciler.kinds.base import Adapters, Changes, Context
    from schemas.observation import Instance

END_SECONDS: Final = 5.0
"""Given to an engine that has nothing left to answer, to end by itself."""


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


def is_serving(item: Instance) -> bool:
    """Whether it runs, and nothing says that it is ill."""
    return item.status == "running" and item.health != "unhealthy"


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
    running = {item.name for backend in adapters.backends.values() for item in backend.list() if is_serving(item)}
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

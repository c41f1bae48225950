"""An instance of an engine on a model's files, for the moment in which it is recorded; gone afterwards."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime.interfaces import Backend, Engine, EngineConnection
    from schemas.manifest import ManifestDocument
    from schemas.ports import Ports
    from schemas.runtimes import LlamaCppArgs, VllmArgs
    from schemas.target import ServingTarget

START_SECONDS: Final = 600
_ENGINE: Final = "engine"
"""File that says at which socket the container engine is; empty for a process."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is started."""

    engine: Engine
    version: str
    """The engine build: the installed version, or the image."""
    manifest: ManifestDocument
    digest: str
    """Content digest of the manifest."""
    key: str
    """`name:version`."""
    files: Path
    """The model's file, or its folder."""
    image: str | None
    """Container image; None runs it natively."""
    docker_socket: str


@dataclass(frozen=True, slots=True)
class Circumstances:
    """How it is started: what honest nodes differ by."""

    context_size: int
    threads: int | None = None
    """llama.cpp's; None leaves it to the engine."""
    parallel: int = 1
    """llama.cpp's: requests that share a batch."""
    eager: bool = False
    """vLLM's: without compiled kernels."""


@contextmanager
def running(subject: Subject, how: Circumstances, ports: Ports) -> Iterator[tuple[EngineConnection, ServingTarget]]:
    """Start it, wait until it is ready, and have it gone in the end.

    Raises:
        StartFailed, NotReadyInTime: it does not start.
        BackendUnavailable, ImageUnavailable: there is nothing to start it with.
    """
    from reconciler.cli.scratch import abandoned, scratch, signals_unwind
    from runtime.connection import UnixConnection
    from runtime.interfaces import SOCKET_NAME, InstanceSpec
    from runtime.starting import start_instance

    for left in abandoned():
        _clear(left, ports)
    intent = ports.randomness.token(6)
    name = f"reconcile-record-{intent}"
    with scratch() as root, signals_unwind() as unwinding:
        (root / _ENGINE).write_text(subject.docker_socket if subject.image else "", encoding="utf-8")
        socket_folder, log_folder = root / "run" / name, root / "logs"
        for path in (socket_folder, log_folder):
            path.mkdir(parents=True, mode=0o755)
        target = _target(subject, how)
        backend = _backend(root, subject.docker_socket if subject.image else "", ports)
        files = subject.files
        model_folder = files.absolute() if files.is_dir() else _alone(files, root / "model")
        view = backend.view(model_folder=model_folder, socket_folder=socket_folder)
        spec = InstanceSpec(
            name=name,
            intent=intent,
            network="record",
            node_id="record",
            target=target,
            launch=subject.engine.launch(target, subject.manifest, view),
            model_folder=model_folder,
            socket_folder=socket_folder,
            log_folder=log_folder,
            log_limit=2**22,
        )
        connection = UnixConnection(socket_folder / SOCKET_NAME, is_peer=lambda pid: backend.is_peer(name, pid))
        try:
            start_instance(backend, subject.engine, spec, connection, clock=ports.clock, stop=ports.stop)
            yield connection, target
        finally:
            unwinding()
            backend.stop(name, grace=1)
            backend.remove(name)


def _clear(root: Path, ports: Ports) -> None:
    """Take away what a run that was killed left: its engine, its mount, its folder."""
    import shutil

    from schemas.errors import BackendUnavailable

    try:
        backend = _backend(root, (root / _ENGINE).read_text(encoding="utf-8"), ports)
        for folder in (root / "run").iterdir():
            if folder.name.startswith("reconcile-record-"):
                backend.stop(folder.name, grace=1)
                backend.remove(folder.name)
    except FileNotFoundError:
        pass  # it was killed before it started anything
    except BackendUnavailable:
        return  # a container engine that does not answer: the next run asks again
    shutil.rmtree(root, ignore_errors=True)


def _alone(file: Path, folder: Path) -> Path:
    """A folder that holds this file and no other: an engine is given folders, and refuses to choose among models."""
    import shutil

    folder.mkdir()
    target = folder / file.name
    try:
        target.hardlink_to(file.resolve())
    except OSError:  # another file system
        shutil.copyfile(file, target)
    return folder


def _backend(root: Path, docker_socket: str, ports: Ports) -> Backend:
    if docker_socket:
        from runtime.backends.containers import ContainerEngine

        return ContainerEngine("docker", socket=docker_socket, network="record", node_id="record", ports=ports)
    from runtime.backends.native import NativeBackend

    return NativeBackend(root / "run", network="record", node_id="record", ports=ports)


def _arguments(subject: Subject, how: Circumstances) -> LlamaCppArgs | VllmArgs:
    from schemas.runtimes import LlamaCppArgs, VllmArgs

    if subject.engine.name == "vllm":
        return VllmArgs(max_model_len=how.context_size, enforce_eager=how.eager)
    return LlamaCppArgs(context_size=how.context_size, threads=how.threads, parallel=how.parallel)


def _target(subject: Subject, how: Circumstances) -> ServingTarget:
    from schemas.base import FileRef
    from schemas.runtimes import Isolation, Resources, Timeouts
    from schemas.target import ServingTarget

    installed = subject.engine.native()
    return ServingTarget(
        runtime="record",
        engine=subject.engine.name,  # type: ignore[arg-type] # one of the registry's names
        version=installed.version if installed else "0",
        mode="container" if subject.image else "native",
        backend="docker" if subject.image else "native",
        image=subject.image,
        environment=installed.environment if installed else None,
        engine_args=_arguments(subject, how),
        isolation=Isolation(),
        resources=Resources(),
        timeouts=Timeouts(start=START_SECONDS),
        model=subject.key,
        manifest=subject.digest,
        probe=FileRef(path="probes/none.yaml", digest=subject.digest),
    )

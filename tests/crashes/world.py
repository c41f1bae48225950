"""A node of real parts: git, signatures, the journal, the store, processes; and agents on it that may die."""

from __future__ import annotations

import shutil
import sqlite3
import sys
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconciler.cli import wiring
from reconciler.identity import create_identity, node_address
from reconciler.loop import Reconciler
from reconciler.state_dir import StateDir
from runtime.backends.containers import ContainerEngine
from runtime.backends.native import NativeBackend
from runtime.engines.simulated import SimulatedEngine
from runtime.host import StopEvent, SystemClock, host_ports
from runtime.interfaces import Activity, Launch
from schemas.digests import digest_bytes
from schemas.observation import StoredModel
from tests.crashes import stub_engine
from tests.crashes.tap import Tap
from tests.desired_state.network import NETWORK, Repository, _yaml, snapshot_text, trust_text
from tests.support.builders import assignment, container_runtime, node, runtime
from tests.support.crashing import OneByOne
from tests.support.invariants.checks import check
from tests.support.invariants.sight import look
from tests.support.models import gguf, lay_out, make_model, silent
from tests.support.simulated_node import Recorder
from tests.support.swapping import WEAKER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reconciler.loop import PassResult
    from runtime.interfaces import EngineConnection, EngineView
    from schemas.manifest import ManifestDocument
    from schemas.node import NodeConfig
    from schemas.observation import Instance
    from schemas.ports import Ports
    from schemas.target import ServingTarget


class LeapingClock(SystemClock):
    """The machine's clock, which leaps ahead when it is told, for every process of a world at once; never back."""

    def __init__(self, path: Path) -> None:
        """Keep its leaps in a file."""
        self._path = path

    def leap(self, seconds: int) -> None:
        """Be so much later from now on."""
        with self._path.open("a", encoding="ascii") as file:
            file.write(f"{time.time()} {seconds}\n")

    def shift(self, moment: datetime) -> datetime:
        """What this clock showed when the machine's showed `moment`."""
        lines = self._path.read_text(encoding="ascii").splitlines() if self._path.exists() else []
        leaps = (line.split() for line in lines)
        return moment + timedelta(seconds=sum(int(by) for at, by in leaps if float(at) <= moment.timestamp()))

    def now(self) -> datetime:
        """The time."""
        return self.shift(datetime.now(UTC))


class _Leaping:
    """Instances are noted by the machine's time, which is not this world's."""

    clock: LeapingClock

    def list(self) -> tuple[Instance, ...]:
        """Every instance, since when by the world's clock."""
        found: tuple[Instance, ...] = super().list()  # type: ignore[misc] # of the backend that it is mixed into
        return tuple(
            replace(item, started_at=self.clock.shift(item.started_at)) if item.started_at is not None else item
            for item in found
        )


class LeapingNative(_Leaping, NativeBackend):
    """Its supervisors note when instances began."""


class LeapingDocker(_Leaping, ContainerEngine):
    """The engine notes when containers began."""


DATES: dict[str, Any] = {"issued": -700, "expires": 36_500}
SETTLED = 6
"""Passes within which a node has to come to rest after a crash."""


class StubEngine(SimulatedEngine):
    """Stands for llama.cpp: a real process behind a real socket, without its cost. It can do what every engine must."""

    answers = frozenset()

    def launch(self, target: ServingTarget, manifest: ManifestDocument, view: EngineView) -> Launch:
        """The program beside this file, without what takes an interpreter long to begin."""
        if target.image is not None:
            # No image has it: it comes as words.
            words = ("-I", "-S", "-B", "-c", Path(stub_engine.__file__).read_text(), view.model, view.socket)
            return Launch(("/usr/bin/python3", *words), {}, program=True)
        return Launch((sys.executable, "-I", "-S", "-B", stub_engine.__file__, view.model, view.socket), {})

    def ready(self, connection: EngineConnection) -> bool:
        """As soon as it answers."""
        return isinstance(connection.request("GET", "/health", timeout=30), dict)

    def activity(self, connection: EngineConnection) -> Activity:
        """Nothing: nobody asks it for anything."""
        self.ready(connection)
        return Activity(0, 0, 0)

    def greedy(self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int) -> tuple[int, ...]:
        """What it says to everything."""
        answer: Any = connection.request("POST", "/completion", {}, timeout=30)
        return tuple(answer["tokens"])[:tokens]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a node has to come to, however often its agents die on the way."""

    serving: str
    kept: tuple[str, ...]
    """Models that are stored then, and no others."""
    rejected: str = ""
    """A model that this node tries and refuses."""


@dataclass(frozen=True, slots=True)
class Docker:
    """Where instances are containers, and not processes."""

    socket: str
    image: str
    """One that has Python, by digest."""


@dataclass
class Network:
    """Its operators: they approve models, rotate trust, sign and publish."""

    repository: Repository
    models: Path
    """Where the bytes of models are fetched from."""
    docker: Docker | None = None
    sequence: int = 0
    trusts: list[bytes] = field(default_factory=list)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    manifests: dict[str, str] = field(default_factory=dict)
    snapshot: bytes | None = None

    def rotate(self) -> None:
        """The next version of the trust: other snapshot signers, the same roots."""
        version = len(self.trusts) + 1
        previous = self.trusts[-1] if self.trusts else None
        content = trust_text(version, previous=previous, signers=self._signers(version), **DATES)
        self.repository.put_trust(version, content, (1, 2))
        self.trusts.append(content)

    @staticmethod
    def _signers(version: int) -> tuple[int, ...]:
        return (11, 12, 13) if version % 2 else (14, 15, 16)

    def approve(self, key: str, seed: int, *, spoiled: bool = False) -> None:
        """Approve a model; with a probe that it cannot pass, if so wished."""
        name, _, version = key.partition(":")
        content = gguf(4096, seed)
        made = make_model({"model.gguf": content}, name=name, version=version)
        manifest = made.manifest.to_json().encode()
        expected = [token + spoiled for token in stub_engine.tokens(content)]
        recorded = {"engine": "llamacpp", "version": "1", "manifest": made.digest, "machine": "cpu"}
        probe = _yaml(
            {
                "apiVersion": "reconcile/v1alpha1",
                "kind": "Probe",
                "metadata": {"name": name, "model": key},
                "spec": {"recorded": recorded, "greedy": [{"prompt": [1], "tokens": expected}]},
            }
        )
        paths = [f"models/{name}/{version}.yaml", f"models/{name}/{version}.pieces", f"probes/{name}-{version}.yaml"]
        for path, data in zip(paths, (manifest, made.pieces, probe), strict=True):
            self.repository.write(path, data)
        self.manifests[key] = digest_bytes(manifest)
        self.entries[key] = {
            "name": name,
            "version": version,
            "manifest": {"path": paths[0], "digest": self.manifests[key]},
            "sources": [lay_out(self.models / name / version, {"model.gguf": content})],
            "validation": {"probe": {"path": paths[2], "digest": digest_bytes(probe)}},
        }

    def publish(self, serve: Sequence[str], listed: Sequence[str]) -> None:
        """Sign and commit the next snapshot; of those to serve, the first is loaded."""
        self.sequence += 1
        version = len(self.trusts)
        spec = {
            "models": [self.entries[key] for key in listed],
            "runtimes": [self._runtime()],
            "assignments": [assignment(*serve)],
            "policy": {"modes": ["native" if self.docker is None else "container"], "gc": {"grace": "1s"}},
        }
        content = snapshot_text(self.sequence, previous=self.snapshot, trust_version=version, spec=spec, **DATES)
        folder = self.repository.folder / "networks" / NETWORK / "snapshot.sigs"
        for old in folder.glob("*"):
            old.unlink()
        self.repository.put_snapshot(content, self._signers(version)[:2])
        self.repository.commit()
        self.snapshot = content

    def _runtime(self) -> dict[str, Any]:
        isolation = {"allowUnenforced": WEAKER}
        if self.docker is None:
            return runtime(isolation=isolation)
        made = container_runtime(isolation=isolation)
        return {name: value for name, value in made.items() if value is not None} | {
            "images": [{"ref": self.docker.image}]
        }


class World:
    """A network, and one node of it."""

    def __init__(self, folder: Path, *, front: bool = True, docker: Docker | None = None) -> None:
        """Found the network; the node has seen nothing yet.

        Args:
            folder: for everything.
            front: whether the node has one.
            docker: where instances are containers; None where they are processes.
        """
        self.folder = folder
        self.docker = docker
        self.network = Network(Repository(folder / "network"), folder / "mirror", docker)
        self.network.rotate()
        self.state = StateDir(folder / "node")
        self.clock = LeapingClock(folder / "clock")
        self._front = front
        self.join()

    def join(self) -> None:
        """A node that knows nothing but its key."""
        self.clear()
        shutil.rmtree(self.state.root, ignore_errors=True)
        self.state.root.mkdir(parents=True)
        self.state.root.chmod(0o755)
        create_identity(self.state, password_file=None, ports=host_ports())
        self.config: NodeConfig = node(
            repositories=({"url": self.network.repository.url},),
            trust={"digest": digest_bytes(self.network.trusts[0])},
            stateDir=str(self.state.root),
            backends=self._configured(),
            policy={"sources": {"allowHttp": True, "allowPrivate": True, "allowFile": True}, "reserve": 0},
            models={"scrub": {"every": 60}},
            front={"enabled": self._front},
        )

    def _configured(self) -> dict[str, Any]:
        weaker = {"allowUnenforced": WEAKER}
        if self.docker is None:
            return {"native": weaker}
        return {"docker": {"socket": self.docker.socket, **weaker}, "native": {"enabled": False}}

    # --- in the process of an agent -------------------------------------------------------------------------------

    def agent(self, tap: Tap) -> Reconciler:
        """A new agent, wired like the real one, with every call to the outside under a tap."""
        ports = self.ports(tap)
        journal = tap.journal(self.state.journal)
        journal.close_interrupted(ports.clock.now())
        made = wiring.build_node(self.config, journal, ports=ports, progress=silent)
        inner = made.adapters
        backend = self._backend(made.node_id, ports)
        backend.clock = self.clock
        adapters = replace(
            inner,
            backends={backend.name: tap.around(backend, backend.name)},
            engines={"llamacpp": StubEngine()},
            connect=lambda backend, name, socket: tap.around(inner.connect(backend, name, socket), "engine"),
            front=tap.around(inner.front, "front") if inner.front is not None else None,
        )
        made = replace(made, adapters=adapters)
        return Reconciler(made, wiring.build_source(made), Recorder())

    def _backend(self, node_id: str, ports: Ports) -> LeapingNative | LeapingDocker:
        if self.docker is None:
            return LeapingNative(self.state.run, network=NETWORK, node_id=node_id, ports=ports)
        return LeapingDocker("docker", socket=self.docker.socket, network=NETWORK, node_id=node_id, ports=ports)

    def ports(self, tap: Tap) -> Ports:
        """The outside under a tap; one thing after the other, so that the n-th call is the same one each time."""
        real = host_ports()
        return replace(
            real,
            clock=self.clock,
            files=tap.files(real.files),
            processes=tap.around(real.processes, "processes"),
            concurrency=OneByOne(),
        )

    def pass_(self, tap: Tap, *, sign: bool = False, idle: bool = False) -> PassResult:
        """One pass of a new agent.

        Args:
            tap: where it dies.
            sign: whether receipts are signed after it, as `reconcile` does it: a process, and a second.
            idle: whether it does what an agent does when nothing is due (that is signing, then scrubbing).
        """
        with self.state.lock():
            agent = self.agent(tap)
            result = agent.run_pass()
            if sign:
                result = agent.sign(result, StopEvent())
            if idle:
                agent.idle(StopEvent())
            return result

    def settle(self, goal: Goal) -> list[str]:
        """New agents until nothing is left to do; what is wrong then, or was at any moment at which one looked."""
        wrong = self.judge(settled=False)
        for _ in range(SETTLED):
            self.later()
            result = self.pass_(Tap())
            wrong += self.judge(settled=True)
            waits = [item for item in result.plan.held if item.subject != goal.rejected]
            seen = wiring.build_store(self.config, host_ports()).list()
            # A pass without anything to do may be followed by one that finds a model unlisted for long enough.
            if not result.plan.actions and not result.outcomes and not waits and set(seen) == self._digests(goal):
                break
        else:
            wrong.append(f"it does not converge: {result.plan.to_json()}, with {sorted(seen)} in its store")
        status = result.status
        got = status.serving.model if status.serving is not None and status.serving.receipt else ""
        if got != goal.serving:
            wrong.append(f"{got!r} serves with a receipt, not {goal.serving!r}")
        if not all(isinstance(item, StoredModel) and item.intact for item in seen.values()):
            wrong.append(f"not all that is stored is intact: {seen}")
        if [item.status for item in self.instances()] != ["running"]:
            wrong.append(f"not one instance runs: {self.instances()}")
        if status.snapshot is None or status.snapshot.sequence != self.network.sequence:
            wrong.append(f"not the last snapshot, {self.network.sequence}, is in force: {status.snapshot}")
        return wrong

    def _digests(self, goal: Goal) -> set[str]:
        return {self.network.manifests[key] for key in goal.kept}

    def judge(self, *, settled: bool) -> list[str]:
        """What the one checker of I1 to I11 says."""
        if not settled and not self._has_tables():
            return []  # an agent that died before its journal was made has done nothing that could be judged
        ports = host_ports()
        sight = look(
            self.state,
            network=NETWORK,
            now=self.clock.now(),
            backends=wiring.build_backends(self.config, self.state, node_address(self.state), ports),
            store=wiring.build_store(self.config, ports),
            front=wiring.build_front(self.config, self.state, ports),
            settled=settled,
        )
        return [str(violation) for violation in check(sight)]

    def _has_tables(self) -> bool:
        if not self.state.journal.exists():
            return False
        with closing(sqlite3.connect(f"file:{self.state.journal}?mode=ro", uri=True)) as db:
            return bool(db.execute("PRAGMA user_version").fetchone()[0])

    # --- between agents -------------------------------------------------------------------------------------------

    def later(self) -> None:
        """Let so much time pass that no budget of restarts is used up, and a scrub is due."""
        self.clock.leap(11 * 60)

    def instances(self) -> tuple[Instance, ...]:
        """What the backends see."""
        backends = wiring.build_backends(self.config, self.state, node_address(self.state), host_ports())
        return tuple(item for backend in backends.values() for item in backend.list())

    def clear(self) -> None:
        """Nothing is left running."""
        if not self.state.identity.exists():
            return
        backends = wiring.build_backends(self.config, self.state, node_address(self.state), host_ports())
        for backend in backends.values():
            for item in backend.list():
                backend.remove(item.name)
        front = wiring.build_front(self.config, self.state, host_ports())
        if front is not None:
            front.stop()

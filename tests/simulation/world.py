"""Everything that outlives an agent, and agents over it: one simulated node, in one thread, from one seed."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from reconciler.chain import Issuer
from reconciler.documents import JournalDocuments
from reconciler.kinds.base import Adapters
from reconciler.loop import Reconciler
from reconciler.node import Node
from reconciler.source import RepositorySource
from reconciler.state_dir import StateDir
from runtime.backends.simulated import SimulatedBackend, SimulatedEngineRoom, SimulatedGpus
from runtime.engines.simulated import SimulatedConnection, SimulatedEngine
from runtime.environments_simulated import SimulatedEnvironments
from runtime.front.simulated import SimulatedFront
from runtime.health import HealthWatch
from runtime.host import ThreadedConcurrency
from runtime.models.simulated import SimulatedModelStore, SimulatedShelf
from schemas.digests import digest_bytes
from schemas.errors import (
    BackendUnavailable,
    DownloadFailed,
    EngineUnreachable,
    ImageUnavailable,
    NoSpace,
    SourceUnreachable,
    StartFailed,
)
from schemas.observation import GpuProcess
from schemas.ports import Completed, Ports
from schemas.refusals import LimitExceeded
from tests.desired_state.network import FIRST_TRUST
from tests.simulation.disk import SimulatedFiles, SimulatedJournal
from tests.simulation.faults import CrashError, Faults, Faulty
from tests.simulation.hands import Hand
from tests.simulation.network import IMAGES, NAMES, URLS, DictFiles, Server, model_digest
from tests.support.builders import NODE_ID, NOW, gpu, hardware, node
from tests.support.invariants.sight import Sight, look, read_record
from tests.support.invariants.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from reconciler.executor import Outcome
    from reconciler.loop import PassResult
    from runtime.front.route import Route
    from runtime.interfaces import Backend, InstanceSpec, Model
    from schemas.observation import Gpu, Hardware, Instance
    from schemas.plan import Action
    from tests.support.invariants.sight import Record

_BACKEND_DOWN: Final = (lambda: BackendUnavailable("connection refused"),)
_START: Final = (*_BACKEND_DOWN, lambda: StartFailed("no such device"))
ERRORS: Final[Mapping[str, Mapping[str, tuple[Callable[[], Exception], ...]]]] = {
    "backend": {
        **dict.fromkeys(("list", "inspect", "stop", "remove", "is_peer", "image", "mend"), _BACKEND_DOWN),
        "create": _START,
        "start": _START,
        "pull": (*_BACKEND_DOWN, lambda: ImageUnavailable("manifest unknown")),
    },
    "engine": dict.fromkeys(("ready", "render", "greedy"), (lambda: EngineUnreachable("reset by peer"),)),
    "connection": {"peer": (lambda: EngineUnreachable("no socket"),)},
    "store": {
        "list": (lambda: OSError(5, "Input/output error"),),
        "acquire": (lambda: DownloadFailed("reset by peer"), lambda: NoSpace("the disk is full")),
        "verify": (lambda: DownloadFailed("Input/output error"),),
        "archive": (lambda: NoSpace("the disk is full"), lambda: DownloadFailed("Input/output error")),
    },
    "front": {
        "look": _BACKEND_DOWN,
        "ensure": (lambda: StartFailed("address in use"),),
        "lead": (lambda: StartFailed("No space left on device"),),
        "hold": (lambda: StartFailed("No space left on device"),),
    },
    "git": {
        "head": (lambda: SourceUnreachable("no route to host"),),
        "fetch": (lambda: SourceUnreachable("the fetch broke off"), lambda: LimitExceeded("sends too much")),
        "keep": (lambda: SourceUnreachable("the mirror is damaged"),),
    },
}
"""What each adapter's protocol says that its calls may raise."""


class SimulatedClock:
    """Time passes by waiting. The wall clock may be set; the other only goes forward."""

    def __init__(self) -> None:
        self.elapsed = 0.0
        self.skew = timedelta()

    def now(self) -> datetime:
        """What the wall clock shows."""
        return NOW + timedelta(seconds=self.elapsed) + self.skew

    def monotonic(self) -> float:
        """Seconds; each look takes a millisecond, so that waiting ends."""
        self.elapsed += 0.001
        return self.elapsed

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.elapsed += seconds


class SimulatedStop:
    """Waiting lets time pass; a stop may be asked for."""

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self.asked = False

    def is_set(self) -> bool:
        """Whether somebody asked."""
        return self.asked

    def wait(self, seconds: float) -> bool:
        """Time passes."""
        self._clock.pass_time(seconds)
        return self.asked


class SimulatedRandomness:
    """Chance, from the seed."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def token(self, length: int) -> str:
        """So many bytes as hex."""
        return self._chance.randbytes(length).hex()

    def uniform(self, low: float, high: float) -> float:
        """A number in between."""
        return self._chance.uniform(low, high)


class NoProcesses:
    """Git and keys are simulated: no subprocess is ever started."""

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        """Refuse."""
        raise AssertionError(f"unexpected subprocess {argv}")


LINGER: Final = 2**22
"""First of the process ids that only the driver still knows: above every one that Linux gives."""


class Machine:
    """The hardware, as it is now: who has its GPUs, and what the driver lists on them."""

    def __init__(self, clock: SimulatedClock, rooms: Mapping[str, SimulatedEngineRoom]) -> None:
        self.hardware: Hardware = hardware(gpus=(gpu(),))
        self.lingering: dict[int, tuple[str, float]] = {}
        """By process id: the GPU on which what has ended is listed still, and until when."""
        self._clock = clock
        self._gpus = next(iter(rooms.values())).gpus

    def read(self) -> Hardware:
        """It."""
        return replace(self.hardware, gpus=tuple(map(self._read, self.hardware.gpus)))

    def _read(self, card: Gpu) -> Gpu:
        now = self._clock.elapsed
        left = [pid for pid, (uuid, until) in self.lingering.items() if uuid == card.uuid and now < until]
        return replace(
            card,
            holder=self._gpus.holder(card.uuid, "testnet", NODE_ID),
            processes=tuple(GpuProcess(pid, 2**30, ended=True) for pid in left),
        )

    def linger(self, uuid: str, seconds: float) -> None:
        """An engine that has ended is listed for a while."""
        self.lingering[LINGER + len(self.lingering)] = (uuid, self._clock.elapsed + seconds)


class SimulatedGit:
    """`GitSource` over servers that show what they please."""

    def __init__(self, servers: Mapping[str, Server]) -> None:
        self._servers = servers

    def _server(self, url: str) -> Server:
        server = self._servers[url]
        if server.down or not server.head:
            raise SourceUnreachable(f"{url}: no route to host")
        return server

    def head(self, url: str, branch: str) -> str:
        """The commit that it shows."""
        return self._server(url).head

    def fetch(self, url: str, branch: str, into: Path, *, borrow: Path | None = None, ref: str = "") -> str:
        """Its objects are at hand."""
        return self._server(url).head

    def files(self, repository: Path, commit: str) -> DictFiles:
        """The files of a commit."""
        history = (entry for server in self._servers.values() for entry in server.history)
        return DictFiles(next(files for name, files in history if name == commit))

    def follows(self, url: str, branch: str, into: Path, *, old: str, new: str) -> bool | None:
        """Whether a commit came after another."""
        names = [name for name, _ in self._servers[url].history]
        return old in names and new in names and names.index(old) <= names.index(new)

    def keep(self, repository: Path, commits: Iterable[str]) -> None:
        """Nothing is ever dropped."""


class Reporter:
    """Writes what the agent does into the trace."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._faults = world.faults

    def started(self, action: Action) -> None:
        """An action begins."""
        self._faults.trace.append(f"    > {action.id}: {action.cause}")
        self._faults.point(f"action {action.id}")
        world = self._world
        if world.journal is not None and (word := world.hand.step(world.journal, world.clock.now())) is not None:
            self._faults.trace.append(f"    reconcile {word}, in the middle of it")

    def finished(self, outcome: Outcome) -> None:
        """An action ended."""
        error = f": {outcome.error.reason}: {outcome.error.message}" if outcome.error else ""
        self._faults.trace.append(f"    {outcome.status} {outcome.action.id}{error}")
        self._faults.point(f"action {outcome.action.id} {outcome.status}")


class WitnessedBackend(SimulatedBackend):
    """A backend whose every effect the witness sees at the moment at which it happens."""

    world: World

    def start(self, name: str) -> None:
        """See `Backend`."""
        item = self._room.instances.get(name)
        spec = self._room.specs.get(name)
        if item is not None and spec is not None and item.status != "running" and not self._room.unavailable:
            self.world.sees_start(self, spec)
        super().start(name)

    def stop(self, name: str, *, grace: float) -> None:
        """See `Backend`."""
        item = self._room.instances.get(name)
        if item is not None and item.status == "running" and not self._room.unavailable:
            self.world.sees_stop(item)
            for uuid in item.gpus:
                self.world.machine.linger(uuid, self.world.chance.choice((0, 0, 2, 20, 100)))
        super().stop(name, grace=grace)

    def remove(self, name: str) -> None:
        """See `Backend`."""
        item = self._room.instances.get(name)
        if item is not None and self._is_ours(name) and not self._room.unavailable:
            self.world.witness.removes(item, at=self.world.clock.now(), record=self.world.record())
        super().remove(name)


class WitnessedStore(SimulatedModelStore):
    """A store whose removals the witness sees; a crash in the middle of a download leaves half of it."""

    world: World

    def acquire(self, model: Model, sources: Sequence[str], **named: Any) -> Sequence[str]:
        """See `ModelStore`."""

        def half() -> None:
            if model.digest not in self._shelf.stored and model.digest not in self._shelf.archived:
                self._shelf.partial[model.digest] = model.manifest.size // 2

        self.world.faults.point("store.acquire under way", half)
        return super().acquire(model, sources, **named)

    def remove(self, digest: str) -> None:
        """See `ModelStore`."""
        # Another node's instances have a store of their own.
        serving = frozenset(
            room.specs[item.name].target.manifest
            for room in self.world.rooms.values()
            for item in room.running()
            if room.specs[item.name].node_id == NODE_ID
        )
        seen = self.list().get(digest)
        self.world.witness.removes_model(digest, record=self.world.record(), seen=seen, serving=serving)
        super().remove(digest)


class WitnessedFront(SimulatedFront):
    """A front whose routes the witness sees."""

    world: World

    def lead(self, route: Route) -> None:
        """See `Front`."""
        if route.state == "serving":
            self.world.witness.leads(
                route.instance, route.intent, at=self.world.clock.now(), record=self.world.record()
            )
        super().lead(route)


class World:
    """One node's world. `boot` starts an agent in it, `crash` ends one."""

    def __init__(self, seed: str, folder: Path) -> None:
        self.chance = random.Random(seed)
        self.faults = Faults(random.Random(f"{seed} faults"))
        self.trace = self.faults.trace
        self.clock = SimulatedClock()
        self.state = StateDir(folder)
        cards = SimulatedGpus()
        self.rooms = {
            "native": SimulatedEngineRoom(gpus=cards),
            "docker": SimulatedEngineRoom(pullable=set(IMAGES), gpus=cards),
        }
        self.shelf = SimulatedShelf()
        self.environments = SimulatedEnvironments()
        self.front = WitnessedFront()
        self.front.world = self
        self.machine = Machine(self.clock, self.rooms)
        self.servers = {url: Server(url) for url in URLS}
        self.engine = SimulatedEngine()
        self.files = SimulatedFiles(self.faults)
        self.witness = Witness()
        self.image = b""
        self.config = node(
            repositories=tuple({"url": url} for url in URLS),
            trust={"digest": digest_bytes(FIRST_TRUST)},
            stateDir=str(folder),
            backends={"native": {}, "docker": {"socket": "/run/docker.sock"}},
        )
        self._tokens = random.Random(f"{seed} tokens")
        self.journal: SimulatedJournal | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.faults.at_point = self._at_point

    # --- agents ---------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """A new agent process over the same world."""
        journal = SimulatedJournal(self.state.journal, self.image, self.faults)
        self.journal = journal
        journal.chain.issuer = Issuer("testnet", NODE_ID, "0.1.0")
        journal.close_interrupted(self.clock.now())
        self.node = self._node(journal)
        source = RepositorySource(self.node)
        source._git = Faulty(SimulatedGit(self.servers), "git", self.faults, ERRORS["git"])  # type: ignore[assignment]
        self.hand = Hand()
        self.reconciler = Reconciler(self.node, source, Reporter(self), self.hand)

    def _node(self, journal: SimulatedJournal) -> Node:
        documents = JournalDocuments(journal)
        self.stop = SimulatedStop(self.clock)
        ports = Ports(
            clock=self.clock,
            randomness=SimulatedRandomness(self._tokens),
            processes=NoProcesses(),
            files=self.files,
            concurrency=ThreadedConcurrency(),
            stop=self.stop,
        )
        store = WitnessedStore(self.shelf)
        store.world = self
        self.backends = {"native": self._backend("native", "native"), "docker": self._backend("docker", "container")}
        adapters = Adapters(
            ports=ports,
            store=self._faulty(store, "store"),
            backends={name: self._faulty(backend, "backend") for name, backend in self.backends.items()},
            engines={"llamacpp": self._faulty(self.engine, "engine")},
            environments=self.environments,
            documents=documents,
            connect=self._connect,
            progress=lambda _subject, _done, _total: None,
            run_folder=self.state.run,
            log_folder=self.state.logs,
            front=self._faulty(self.front, "front"),
            machine=self.machine,
            health=HealthWatch(self.clock),
        )
        return Node(
            config=self.config,
            node_id=NODE_ID,
            agent="0.1.0",
            state=self.state,
            journal=journal,
            documents=documents,
            adapters=adapters,
            hardware=self.machine,
        )

    def _backend(self, name: Any, mode: Any) -> WitnessedBackend:
        backend = WitnessedBackend(
            self.rooms[name], network="testnet", node_id=NODE_ID, clock=self.clock, name=name, mode=mode
        )
        backend.world = self
        return backend

    def _faulty(self, inner: Any, name: str) -> Any:
        return Faulty(inner, name, self.faults, ERRORS[name])

    def _connect(self, backend: Backend, name: str, socket: Path) -> Any:
        return self._faulty(SimulatedConnection(self.rooms[backend.name], name), "connection")

    def crash(self, *, power: bool = False, journal_lost: bool = False) -> None:
        """The agent is gone, at once.

        Args:
            power: the whole machine, rather: what was not synced is lost, and nothing runs any more.
            journal_lost: the journal with it.
        """
        if self.journal is not None:
            self.image = self.journal.left(power=power)
            self.journal.close()
            self.journal = None
        if power:
            self.files.lose_power()
            self.front.running = False
            for room in self.rooms.values():
                for item in room.running():
                    room.kill(item.name, detail="power loss")
        if journal_lost:
            self.image = b""
            self.witness.names.clear()

    # --- looking --------------------------------------------------------------------------------------------------

    def record(self) -> Record:
        """The journal at this moment, as a stranger reads it."""
        assert self.journal is not None
        return read_record(self.journal._db)

    def look(self, *, settled: bool) -> Sight:
        """One look from outside, at which nothing goes wrong."""
        return look(
            self.state,
            network="testnet",
            now=self.clock.now(),
            backends=self.backends,
            store=SimulatedModelStore(self.shelf),
            front=self.front,
            settled=settled,
            record=self.record(),
        )

    def running(self) -> tuple[Instance, ...]:
        """What runs with this node's marks, seen or not."""
        return tuple(
            item for room in self.rooms.values() for item in room.running() if room.specs[item.name].node_id == NODE_ID
        )

    def blind(self) -> tuple[str, ...]:
        """Backends that cannot be seen."""
        return tuple(name for name, room in self.rooms.items() if room.unavailable)

    def serving(self) -> list[str]:
        """Models that run."""
        return [
            room.specs[item.name].target.model
            for room in self.rooms.values()
            for item in room.running()
            if room.specs[item.name].node_id == NODE_ID
        ]

    def sees_start(self, backend: WitnessedBackend, spec: InstanceSpec) -> None:
        """Tell the witness of a start."""
        cards = {card.uuid: card for card in self.machine.read().gpus}
        self.witness.starts(
            spec.name,
            spec.intent,
            spec.target,
            at=self.clock.now(),
            record=self.record(),
            models=SimulatedModelStore(self.shelf).list(),
            running=self.running(),
            blind=self.blind(),
            accelerator=self.machine.hardware.accelerator,
            unenforced=frozenset(backend.not_enforced()),
            gpus={uuid: cards[uuid].fault if uuid in cards else "it is not there" for uuid in spec.gpus},
            busy={card.uuid for card in cards.values() if card.processes},
        )

    def sees_stop(self, item: Instance) -> None:
        """Tell the witness of a stop."""
        lost = any(card.uuid in item.gpus for card in self.machine.hardware.gpus if card.fault)
        self.witness.stops(
            # An engine whose GPU is gone serves nobody, however well it looks.
            replace(item, health="unhealthy") if lost else item,
            at=self.clock.now(),
            record=self.record(),
            models=SimulatedModelStore(self.shelf).list(),
            images=frozenset(self.rooms["docker"].images),
            running=self.running(),
        )

    def _at_point(self, name: str) -> None:
        for message in shared_gpus(self.rooms.values()):
            self.witness._say("I3", f"{message}, at {name}")
        running = self.running()
        if len(running) > 1:
            self.witness._say("I3", f"{', '.join(item.name for item in running)} run at once, at {name}")

    def dry_run(self) -> None:
        """`reconcile plan`: shows, and changes nothing (I9)."""
        assert self.journal is not None
        before = self._everything()
        accepted = self.journal.accepted()
        from reconciler.planner import plan

        desired, observed = self.node.look(accepted.digest if accepted else "")
        plan(desired, observed, self.config, self.clock.now())
        self.witness.looked_only(before, self._everything())

    def _everything(self) -> object:
        assert self.journal is not None
        files = sorted((str(path), path.stat().st_mtime_ns) for path in self.state.root.rglob("*"))
        rooms = {name: dict(room.instances) for name, room in self.rooms.items()}
        return (files, rooms, dict(self.shelf.stored), self.front.route, self.journal._db.total_changes)

    def attempt(self) -> tuple[PassResult | None, str]:
        """One pass, as the daemon makes it. What came of it, and what it died or failed of."""
        from schemas.errors import ReconcileError

        assert self.journal is not None
        self.journal.begin_step()
        try:
            return self.reconciler.run_pass(), ""
        except ReconcileError as error:
            return None, f"{error.reason}: {error.message}"


def shared_gpus(rooms: Iterable[SimulatedEngineRoom]) -> Iterator[str]:
    """GPUs on which engines of two nodes run."""
    nodes: dict[str, set[tuple[str, str]]] = {}
    for room in rooms:
        for item in room.running():
            spec = room.specs[item.name]
            for uuid in spec.gpus:
                nodes.setdefault(uuid, set()).add((spec.network, spec.node_id))
    for uuid, owners in sorted(nodes.items()):
        if len(owners) > 1:
            yield f"engines of {len(owners)} nodes run on {uuid}"


__all__ = ["NAMES", "CrashError", "World", "model_digest"]

"""A whole node on simulated parts: the real journal, planner, executor and loop over a room, a shelf and a clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from reconciler.chain import Issuer
from reconciler.journal import Accepted, Journal, StoredDocument
from reconciler.kinds.base import Adapters
from reconciler.loop import PassResult, Reconciler
from reconciler.memory import Note
from reconciler.node import Node
from reconciler.state_dir import StateDir
from reconciler.status import SourceReport
from runtime.backends.simulated import SimulatedBackend, SimulatedEngineRoom
from runtime.engines.simulated import SimulatedConnection, SimulatedEngine, answer
from runtime.environments_simulated import SimulatedEnvironments
from runtime.health import HealthWatch
from runtime.host import DurableFiles, StopEvent, ThreadedConcurrency
from runtime.interfaces import Model
from runtime.models.simulated import SimulatedModelStore, SimulatedShelf
from schemas.digests import digest_text
from schemas.manifest import ManifestDocument
from schemas.ports import Completed, Ports
from schemas.probe import ProbeDocument
from tests.support.builders import NODE_ID, NOW, hardware, node

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from reconciler.executor import Outcome
    from runtime.front.simulated import SimulatedFront
    from schemas.errors import ReconcileError
    from schemas.node import NodeConfig
    from schemas.observation import Hardware
    from schemas.plan import Action
    from schemas.snapshot import SnapshotDocument

MODEL_SIZE = 1000


class SteppingClock:
    """Stands still until it is told; sleeping moves it."""

    def __init__(self) -> None:
        self.moment = NOW

    def now(self) -> datetime:
        """The time."""
        return self.moment

    def monotonic(self) -> float:
        """Seconds; a little later at each look, so that waiting ends."""
        self.moment += timedelta(milliseconds=1)
        return self.moment.timestamp()


class CountingRandomness:
    """Numbers in order: the same run gives the same names."""

    def __init__(self) -> None:
        self.count = 0

    def token(self, length: int) -> str:
        """The next number, as hex."""
        self.count += 1
        return f"{self.count:0{2 * length}x}"

    def uniform(self, low: float, high: float) -> float:
        """The middle."""
        return (low + high) / 2


class NoProcesses:
    """No subprocess is ever needed here."""

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        """Refuse."""
        raise AssertionError(f"unexpected subprocess {argv}")


class LiteralDocuments:
    """Documents that follow from their names: every manifest is one file, every probe what the model would answer."""

    def __init__(self) -> None:
        self.snapshots: dict[str, SnapshotDocument] = {}

    def snapshot(self, digest: str) -> SnapshotDocument:
        """A snapshot that was put in force."""
        return self.snapshots[digest]

    def model(self, digest: str) -> Model:
        """A model of one file."""
        document = ManifestDocument.model_validate(
            {
                "apiVersion": "reconcile/v1alpha1",
                "kind": "ModelManifest",
                "metadata": {"name": "m", "version": "v1"},
                "spec": {
                    "format": "gguf",
                    "files": (
                        {
                            "path": "model.gguf",
                            "size": MODEL_SIZE,
                            "blake3": digest_text(f"file of {digest}"),
                            "sha256": "sha256:" + "0" * 64,
                        },
                    ),
                    "pieces": {"path": "models/m.pieces", "digest": digest_text(f"pieces of {digest}")},
                },
            }
        )
        return Model(digest, document, b"\0" * 32)

    def lock(self, digest: str) -> bytes:
        """A lock that says no more than its name."""
        return digest.encode()

    def probe(self, digest: str) -> ProbeDocument:
        """A probe of whichever model it stands beside."""
        manifest = next(
            spec.manifest.digest
            for snapshot in self.snapshots.values()
            for spec in snapshot.spec.models
            if spec.validation.probe.digest == digest
        )
        return ProbeDocument.model_validate(
            {
                "apiVersion": "reconcile/v1alpha1",
                "kind": "Probe",
                "metadata": {"name": "p", "model": "m:v1"},
                "spec": {
                    "recorded": {"engine": "llamacpp", "version": "1.0", "manifest": manifest, "machine": "test"},
                    "tokenizer": (
                        {
                            "messages": ({"role": "user", "content": "hello"},),
                            "tokens": answer("tokenizer", "user:hello"),
                        },
                    ),
                    "greedy": ({"prompt": (1, 2), "tokens": answer(manifest, "1", "2")},),
                },
            }
        )


class FixedHardware:
    """A machine that does not change."""

    def __init__(self, machine: Hardware) -> None:
        self.machine = machine

    def read(self) -> Hardware:
        """The machine."""
        return self.machine


class ScriptedSource:
    """Puts in force whatever the test hands it; or fails as told."""

    def __init__(self, owner: SimulatedNode) -> None:
        self._owner = owner

    def refresh(self, now: datetime) -> SourceReport:
        """Accept the next snapshot, if there is one."""
        owner = self._owner
        if owner.source_error is not None:
            error = owner.source_error
            return SourceReport(verified=False, reason=error.reason, message=error.message, error=error)
        if owner.offered is not None:
            document, owner.offered = owner.offered, None
            digest = digest_text(document.to_json())
            owner.documents.snapshots[digest] = document
            accepted = Accepted(
                digest,
                document.metadata.epoch,
                document.metadata.sequence,
                ("0x" + "a" * 40, "0x" + "b" * 40),
                1,
                document.metadata.issued_at,
                document.metadata.expires_at,
                now,
            )
            stored = {digest: StoredDocument("snapshot", document.to_json().encode())}
            owner.journal.accept(accepted, stored, Note("Normal", "SnapshotAccepted", digest))
        return SourceReport(verified=True, reason="Verified", message="")


class CrashError(BaseException):
    """The process dies here. Not an `Exception`: nothing may catch it."""


@dataclass
class Recorder:
    """Remembers what happened, and dies where it is told to."""

    lines: list[str] = field(default_factory=list)
    crash_at: int = -1
    seen: int = 0

    def started(self, action: Action) -> None:
        """An action begins."""
        self._point()
        self.lines.append(f"> {action.id}")

    def finished(self, outcome: Outcome) -> None:
        """An action ended."""
        self.lines.append(f"{outcome.status} {outcome.action.id}")
        self._point()

    def _point(self) -> None:
        self.seen += 1
        if self.seen == self.crash_at:
            raise CrashError


def ignore_progress(subject: str, done: int, total: int) -> None:
    """Nobody watches."""


@dataclass
class SimulatedNode:
    """What outlives the agent (room, shelf, journal file, clock) and an agent over it that can be started anew."""

    folder: Path
    config: NodeConfig = field(default_factory=lambda: node(backends={"native": {}}))
    room: SimulatedEngineRoom = field(default_factory=SimulatedEngineRoom)
    shelf: SimulatedShelf = field(default_factory=SimulatedShelf)
    clock: SteppingClock = field(default_factory=SteppingClock)
    randomness: CountingRandomness = field(default_factory=CountingRandomness)
    documents: LiteralDocuments = field(default_factory=LiteralDocuments)
    machine: FixedHardware = field(default_factory=lambda: FixedHardware(hardware()))
    recorder: Recorder = field(default_factory=Recorder)
    lies: frozenset[str] = frozenset()
    front: SimulatedFront | None = None
    environments: SimulatedEnvironments = field(default_factory=SimulatedEnvironments)
    offered: SnapshotDocument | None = None
    source_error: ReconcileError | None = None
    journal: Journal = field(init=False)

    def __post_init__(self) -> None:
        """Start the first agent."""
        self.restart()

    def restart(self) -> None:
        """A new agent process over the same world."""
        if hasattr(self, "journal"):
            self.journal.close()
        state = StateDir(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(state.journal)
        self.journal.chain.issuer = Issuer("testnet", NODE_ID, "0.1.0")
        self.journal.close_interrupted(self.clock.now())
        ports = Ports(
            clock=self.clock,
            randomness=self.randomness,
            processes=NoProcesses(),
            files=DurableFiles(),
            concurrency=ThreadedConcurrency(),
            stop=StopEvent(),
        )
        backend = SimulatedBackend(
            self.room, network="testnet", node_id=NODE_ID, clock=self.clock, name="native", mode="native"
        )
        adapters = Adapters(
            ports=ports,
            store=SimulatedModelStore(self.shelf),
            backends={"native": backend},
            engines={"llamacpp": SimulatedEngine(lies=self.lies)},
            environments=self.environments,
            documents=self.documents,
            connect=lambda _backend, name, _socket: SimulatedConnection(self.room, name),
            progress=ignore_progress,
            run_folder=state.run,
            log_folder=state.logs,
            front=self.front,
            health=HealthWatch(self.clock),
        )
        self.node = Node(
            config=self.config,
            node_id=NODE_ID,
            agent="0.1.0",
            state=state,
            journal=self.journal,
            documents=self.documents,  # type: ignore[arg-type] # the same methods, from literals
            adapters=adapters,
            hardware=self.machine,
        )
        self.wire()

    def wire(self) -> None:
        """An agent over the node as it is now: after its parts were replaced."""
        self.reconciler = Reconciler(self.node, ScriptedSource(self), self.recorder)

    def offer(self, document: SnapshotDocument) -> None:
        """What the repositories will have at the next look."""
        self.offered = document

    def run(self, document: SnapshotDocument | None = None) -> PassResult:
        """One pass."""
        if document is not None:
            self.offer(document)
        return self.reconciler.run_pass()

    def serving(self) -> list[str]:
        """Models of the instances that run."""
        return [self.room.specs[item.name].target.model for item in self.room.running()]

    def later(self, **span: float) -> None:
        """Let time pass."""
        self.clock.moment += timedelta(**span)


def states(result: PassResult) -> Mapping[str, str]:
    """Model states of a pass's report."""
    return {model.model: model.state for model in result.status.models}


def conditions(result: PassResult) -> Mapping[str, str]:
    """Condition statuses of a pass's report."""
    return {condition.type: condition.status for condition in result.status.conditions}

"""What can be seen of a node from outside: its journal, read-only, and everything that lies or runs beside it."""

from __future__ import annotations

import functools
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from desired_state.document import SNAPSHOT_LIMIT, TRUST_LIMIT, load
from desired_state.watermark import Mark
from reconciler.published import read_status
from schemas.digests import digest_bytes
from schemas.errors import BackendUnavailable, ReconcileError
from schemas.observation import Present, Unknown
from schemas.snapshot import SnapshotDocument
from schemas.target import ServingTarget
from schemas.trust import TrustDocument

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from reconciler.state_dir import StateDir
    from runtime.interfaces import Backend, Front, ModelStore
    from schemas.observation import FrontSeen, Instance, ModelSeen, Observation
    from schemas.status import NodeStatus

_NEVER_TAKEN = -1.0


@dataclass(frozen=True, slots=True)
class AcceptedRow:
    """A snapshot that was put in force."""

    number: int
    digest: str
    epoch: int
    sequence: int
    signers: tuple[str, ...]
    trust_version: int
    expires_at: datetime
    accepted_at: datetime


@dataclass(frozen=True, slots=True)
class ReceiptRow:
    """A proof, voided or not."""

    number: int
    subject: str
    manifest: str
    intent: str
    previous: str
    digest: str
    voided: bool


@dataclass(frozen=True, slots=True)
class IntentRow:
    """What was about to be done, and how it ended."""

    id: str
    kind: str
    spec_digest: str
    outcome: str
    error: str


@dataclass(frozen=True, slots=True)
class Record:
    """The journal, as a stranger reads it: by its tables, not by the agent's own code."""

    accepted: tuple[AcceptedRow, ...]
    receipts: tuple[ReceiptRow, ...]
    intents: Mapping[str, IntentRow]
    running_passes: tuple[str, ...]
    """Plans of the passes that are not over, as JSON."""
    models: Mapping[str, tuple[str, str, float]]
    """By manifest: key, state, seconds for which it was not listed."""
    rejections: frozenset[str]
    holds: Mapping[str, datetime]
    good: ServingTarget | None
    good_snapshot: str
    earlier: ServingTarget | None
    """What was good before it: the way back where the last known good fails its retest."""
    facts: Mapping[str, str]
    documents: Mapping[str, tuple[str, bytes]]
    """By digest: kind and content."""
    events: int
    passes: int

    @property
    def in_force(self) -> AcceptedRow | None:
        """The snapshot that counts."""
        return self.accepted[-1] if self.accepted else None

    def snapshot(self) -> SnapshotDocument | None:
        """The document that is in force; None for none, or where its bytes are not kept, or are others."""
        if self.in_force is None or self.in_force.digest not in self.documents:
            return None
        content = self.documents[self.in_force.digest][1]
        return parse_snapshot(content) if digest_of(content) == self.in_force.digest else None

    def proofs(self) -> frozenset[str]:
        """Intents of the instances that hold a receipt which nothing has voided."""
        return frozenset(row.intent for row in self.receipts if not row.voided)

    def unlisted(self, manifest: str) -> float:
        """Running time, seconds, for which a manifest was not listed, as the journal counted it."""
        if manifest in self.models:
            return self.models[manifest][2]
        return float(self.facts.get(f"unlisted/{manifest}", _NEVER_TAKEN))

    def planned_starts(self) -> list[dict[str, Any]]:
        """The starts that the plans under way lead to."""
        plans = [json.loads(text) for text in self.running_passes]
        return [action for plan in plans for action in plan["actions"] if action["kind"] == "start-instance"]


def read_record(db: sqlite3.Connection) -> Record:
    """Read a journal's tables."""
    rows = db.execute(
        "SELECT number, digest, epoch, sequence, signers, trust_version, expires_at, accepted_at"
        " FROM accepted ORDER BY number"
    )
    accepted = tuple(
        AcceptedRow(*row[:4], tuple(json.loads(row[4])), row[5], *map(datetime.fromisoformat, row[6:])) for row in rows
    )
    rows = db.execute(
        "SELECT number, subject, manifest, intent, previous, digest,"
        " voided_at IS NOT NULL OR outcome <> 'pass' FROM receipts ORDER BY number"
    )
    receipts = tuple(ReceiptRow(*row[:6], bool(row[6])) for row in rows)
    rows = db.execute("SELECT id, kind, spec_digest, outcome, error FROM intents")
    intents = {row[0]: IntentRow(*row) for row in rows}
    good = db.execute("SELECT target, snapshot FROM last_known_good").fetchone()
    earlier = db.execute("SELECT target FROM earlier_good").fetchone()
    return Record(
        accepted=accepted,
        receipts=receipts,
        intents=intents,
        running_passes=tuple(row[0] for row in db.execute("SELECT plan FROM passes WHERE outcome = 'running'")),
        models={
            row[0]: (row[1], row[2], row[3])
            for row in db.execute("SELECT manifest, key, state, unlisted_for FROM models")
        },
        rejections=frozenset(row[0] for row in db.execute("SELECT subject FROM rejections")),
        holds={row[0]: datetime.fromisoformat(row[1]) for row in db.execute("SELECT subject, until FROM holds")},
        good=parse_target(good[0]) if good else None,
        good_snapshot=good[1] if good else "",
        earlier=parse_target(earlier[0]) if earlier else None,
        facts=dict(db.execute("SELECT name, value FROM facts").fetchall()),
        documents={row[0]: (row[1], row[2]) for row in db.execute("SELECT digest, kind, content FROM documents")},
        events=int(db.execute("SELECT COUNT(*) FROM events").fetchone()[0]),
        passes=int(db.execute("SELECT COUNT(*) FROM passes").fetchone()[0]),
    )


def open_record(path: Path) -> Record:
    """Read the journal of a node, beside a running agent or after one."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
        return read_record(db)


@functools.lru_cache(maxsize=256)
def parse_snapshot(content: bytes) -> SnapshotDocument:
    """A snapshot's bytes."""
    return load(content, SnapshotDocument, file="snapshot", limit=SNAPSHOT_LIMIT)


@functools.lru_cache(maxsize=64)
def parse_trust(content: bytes) -> TrustDocument:
    """A trust document's bytes."""
    return load(content, TrustDocument, file="trust", limit=TRUST_LIMIT)


@functools.lru_cache(maxsize=256)
def parse_target(text: str) -> ServingTarget:
    """A target, as the journal writes it."""
    return ServingTarget.model_validate_json(text)


@functools.lru_cache(maxsize=1024)
def digest_of(content: bytes) -> str:
    """The digest of a document."""
    return digest_bytes(content)


@dataclass(frozen=True, slots=True)
class Sight:
    """Everything that one look from outside shows."""

    at: datetime
    network: str
    record: Record
    mark: Mark | None
    """The copy of the mark beside the journal."""
    status: NodeStatus | None
    instances: Mapping[str, Observation[tuple[Instance, ...]]]
    front: Observation[FrontSeen] | None
    """None on a node without one."""
    models: Mapping[str, ModelSeen] | None
    """None where the store cannot be read."""
    strays: tuple[str, ...] = ()
    """What lies in the state directory and has no business there."""
    settled: bool = False
    """A pass has ended by itself since anything happened, and none is under way."""
    overlap: bool = False
    """Snapshot, node and plan allow a second instance just now."""
    foreign: frozenset[str] = field(default_factory=frozenset)
    """Names of instances that are not this node's, and are there."""

    def ours(self) -> list[Instance]:
        """Instances with this node's marks, as far as they can be seen."""
        return [item for _, seen in sorted(self.instances.items()) if isinstance(seen, Present) for item in seen.value]

    def running(self) -> list[Instance]:
        """Those that run."""
        return [item for item in self.ours() if item.status == "running"]

    @property
    def blind(self) -> tuple[str, ...]:
        """Backends that cannot be seen."""
        return tuple(name for name, seen in sorted(self.instances.items()) if isinstance(seen, Unknown))


KNOWN_NAMES = frozenset(
    {
        *("state.db", "state.db-wal", "state.db-shm", "state.db-journal", "mark", "timestamp", "status.json"),
        *(
            "identity.json",
            "repo.git",
            "imported.git",
            "imports",
            "images",
            "models",
            "runtimes",
            "run",
            "logs",
            "lock",
        ),
        # The next write of the same name takes over what a crash left of the last one: at most one of each.
        *(".mark.new", ".timestamp.new", ".status.json.new", ".identity.json.new"),
    }
)


def look(
    state: StateDir,
    *,
    network: str,
    now: datetime,
    backends: Mapping[str, Backend],
    store: ModelStore,
    front: Front | None = None,
    settled: bool = False,
    record: Record | None = None,
) -> Sight:
    """Look at a node from outside, with real backends or simulated ones. Changes nothing.

    Args:
        state: its state directory.
        network: its network.
        now: the time.
        backends: ways to its backends.
        store: a way to its models.
        front: a way to its front.
        settled: whether the last pass ended by itself, and nothing happened since.
        record: its journal, where it is no file.
    """
    return Sight(
        at=now,
        network=network,
        record=record if record is not None else open_record(state.journal),
        mark=_mark(state.mark),
        status=read_status(state),
        instances={name: _instances(backend) for name, backend in sorted(backends.items())},
        front=_front(front),
        models=_models(store),
        strays=tuple(sorted(path.name for path in state.root.iterdir() if path.name not in KNOWN_NAMES)),
        settled=settled,
    )


def _mark(path: Path) -> Mark | None:
    try:
        return Mark.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def _instances(backend: Backend) -> Observation[tuple[Instance, ...]]:
    try:
        return Present(backend.list())
    except BackendUnavailable as error:
        return Unknown(error.message)


def _front(front: Front | None) -> Observation[FrontSeen] | None:
    try:
        return Present(front.look()) if front is not None else None
    except BackendUnavailable as error:
        return Unknown(error.message)


def _models(store: ModelStore) -> Mapping[str, ModelSeen] | None:
    try:
        return store.list()
    except (OSError, ReconcileError):
        return None

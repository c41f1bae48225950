"""The durable record: what was accepted, intended, done and learned. SQLite in WAL mode; the only importer of sqlite3.

The journal explains the past and is never read as the present: what is there is observed. One transaction records an
outcome together with everything that is remembered of it, so a crash leaves both or neither (I7).
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

from reconciler.chain import Chain
from reconciler.downtime import KEPT
from reconciler.memory import (
    AskCheck,
    AskRetest,
    CommitGood,
    DropCheck,
    DropHold,
    ForgetModel,
    IssueReceipt,
    Note,
    PutHold,
    PutModel,
    Reject,
    VoidReceipts,
)
from reconciler.migrations import MIGRATIONS, SCHEMA, SCHEMA_VERSION
from reconciler.proof import settled
from schemas.errors import DiskFailed, MissingDocument, NoSpace, NotInitialised, StateCorrupt, StateLocked
from schemas.observation import (
    MODEL_TRANSITIONS,
    Hold,
    LastKnownGood,
    Memory,
    ModelRecord,
    Rejection,
)
from schemas.target import ServingTarget

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from reconciler.memory import Change
    from schemas.errors import ReconcileError

BUSY_SECONDS: Final = 10
"""How long a reader or writer waits for another process's transaction; every one of ours takes milliseconds."""

KEPT_EVENTS: Final = 10_000
KEPT_PASSES: Final = 2_000
"""Rows kept: years of a quiet node, days of a troubled one, a few MiB at most."""

_CHECK: Final = "check/"
"""Facts of this name say which manifests a person wants to be hashed, and why."""
_RETEST: Final = "retest/"
"""Facts of this name say which manifests' answers are in doubt, and why."""
_UNLISTED: Final = "unlisted/"
"""Facts of this name count the running time of what lies in the store without a record, and is not listed."""
_DOWNTIME: Final = "downtime/"
"""Facts: by kind of change, how long the last ones interrupted the service: milliseconds, the newest last."""

_COUNTED: Final = "counted"
"""The fact that says when that was last done."""

PassOutcome = Literal["running", "applied", "failed", "cancelled", "interrupted"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The snapshot that is in force."""

    digest: str
    epoch: int
    sequence: int
    signers: tuple[str, ...]
    trust_version: int
    issued_at: datetime
    expires_at: datetime
    accepted_at: datetime


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """A document to keep. `parent` is the digest of the document that binds it, and whose end is its end."""

    kind: str
    content: bytes
    parent: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, for people and programs."""

    number: int
    at: datetime
    type: str
    reason: str
    message: str
    subject: str


@dataclass(frozen=True, slots=True)
class PassRecord:
    """One pass that had something to do."""

    number: int
    started_at: datetime
    finished_at: datetime | None
    snapshot: str
    sequence: int
    outcome: PassOutcome
    actions: int
    downtime_ms: int
    summary: str


class Journal:
    """The journal of one state directory. One writer at a time; readers need no lock."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        """Open the journal.

        Args:
            path: `state.db`.
            readonly: open without the ability to write; nothing is created (I9).

        Raises:
            NotInitialised: read-only, and there is none.
            StateCorrupt: not a journal, or one of a newer agent.
        """
        if readonly and not path.exists():
            raise NotInitialised(f"{path} does not exist", hint="run `reconcile init` first")
        try:
            self._db = self._connect(path, readonly=readonly)
            self._db.execute("PRAGMA foreign_keys = ON")
            if not readonly:
                self._db.execute("PRAGMA journal_mode = WAL")
                # FULL: a commit survives power loss, which is what "journalled" has to mean here.
                self._db.execute("PRAGMA synchronous = FULL")
                self._migrate()
            elif self._format() < SCHEMA_VERSION:
                self._db = self._copy()
                self._migrate()
            self._check_version()
            self.chain = Chain(self._db)
        except sqlite3.DatabaseError as error:
            raise StateCorrupt(f"{path} cannot be used: {error}") from error

    def _connect(self, path: Path, *, readonly: bool) -> sqlite3.Connection:
        """A connection in autocommit: every transaction of ours is explicit. The simulation has another."""
        uri = f"file:{path}?mode={'ro' if readonly else 'rwc'}"
        return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    # --- acceptance -----------------------------------------------------------------------------------------------

    def accepted(self) -> Accepted | None:
        """The snapshot in force, None before the first."""
        row = self._db.execute(
            "SELECT digest, epoch, sequence, signers, trust_version, issued_at, expires_at, accepted_at"
            " FROM accepted ORDER BY number DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        digest, epoch, sequence, signers, trust_version, *times = row
        return Accepted(digest, epoch, sequence, tuple(json.loads(signers)), trust_version, *map(_read, times))

    def accept(self, accepted: Accepted, documents: Mapping[str, StoredDocument], note: Note) -> None:
        """Put a snapshot in force, with every document that it binds; drop documents that nothing needs any more."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO accepted "
                " (digest, epoch, sequence, signers, trust_version, issued_at, expires_at, accepted_at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    accepted.digest,
                    accepted.epoch,
                    accepted.sequence,
                    json.dumps(accepted.signers),
                    accepted.trust_version,
                    _write(accepted.issued_at),
                    _write(accepted.expires_at),
                    _write(accepted.accepted_at),
                ),
            )
            self._set_fact("mark.forgotten", "")
            self._put_documents(documents)
            self._drop_documents(accepted.digest, documents)
            self._note(note, accepted.accepted_at)

    def forget_accepted(self, note: Note, now: datetime) -> None:
        """Forget which snapshots were accepted, and with them this copy of the mark."""
        with self._transaction():
            self._db.execute("DELETE FROM accepted")
            self._set_fact("mark.forgotten", "yes")
            self._note(note, now)

    def document(self, digest: str) -> bytes:
        """The exact bytes of a kept document.

        Raises:
            MissingDocument: it is not kept.
        """
        row = self._db.execute("SELECT content FROM documents WHERE digest = ?", (digest,)).fetchone()
        if row is None:
            raise MissingDocument("no accepted snapshot binds it, or it is no longer kept", file=digest)
        return bytes(row[0])

    def put_documents(self, documents: Mapping[str, StoredDocument]) -> None:
        """Keep documents that no snapshot binds: trust documents."""
        with self._transaction():
            self._put_documents(documents)

    def _put_documents(self, documents: Mapping[str, StoredDocument]) -> None:
        self._db.executemany(
            "INSERT OR IGNORE INTO documents (digest, kind, parent, content) VALUES (?, ?, ?, ?)",
            [(digest, item.kind, item.parent, item.content) for digest, item in documents.items()],
        )

    def _drop_documents(self, snapshot: str, documents: Mapping[str, StoredDocument]) -> None:
        keep = {snapshot, *documents}
        keep.update(row[0] for row in self._db.execute("SELECT manifest FROM models"))
        for good in (self._good("last_known_good"), self._good("earlier_good")):
            if good is not None:
                keep.update((good.target.manifest, good.target.probe.digest, good.snapshot))
                keep.update((good.target.lock.digest,) if good.target.lock is not None else ())
        rows = self._db.execute("SELECT digest, kind, parent FROM documents").fetchall()
        drop = [(digest,) for digest, kind, parent in rows if kind != "trust" and not {digest, parent} & keep]
        self._db.executemany("DELETE FROM documents WHERE digest = ?", drop)

    # --- small facts ----------------------------------------------------------------------------------------------

    def fact(self, name: str) -> str:
        """A named fact; empty when it was never set."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def set_fact(self, name: str, value: str) -> None:
        """Set a named fact. Unchanged values are not written, so that an idle pass writes nothing."""
        if self.fact(name) != value:
            with self._transaction():
                self._set_fact(name, value)

    def _set_fact(self, name: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?, ?)", (name, value))

    # --- passes and intents ---------------------------------------------------------------------------------------

    def begin_pass(self, *, snapshot: str, sequence: int, actions: int, plan: str, now: datetime) -> int:
        """Record that a plan is about to be carried out; returns the pass's number."""
        with self._transaction():
            cursor = self._db.execute(
                "INSERT INTO passes (started_at, snapshot, sequence, outcome, actions, plan) VALUES (?, ?, ?, ?, ?, ?)",
                (_write(now), snapshot, sequence, "running", actions, plan),
            )
            self._db.execute("DELETE FROM passes WHERE number <= ?", ((cursor.lastrowid or 0) - KEPT_PASSES,))
        return int(cursor.lastrowid or 0)

    def finish_pass(
        self,
        number: int,
        *,
        outcome: PassOutcome,
        downtime_ms: int,
        summary: str,
        applied: str,
        now: datetime,
        downtime_kind: str = "",
    ) -> None:
        """Record how a pass ended.

        Args:
            number: of the pass.
            outcome: how.
            downtime_ms: milliseconds for which it interrupted the service.
            summary: for people.
            applied: the snapshot, if the node has converged to it.
            now: the time.
            downtime_kind: what the interruption counts for; empty where it went otherwise than planned.
        """
        with self._transaction():
            self._db.execute(
                "UPDATE passes SET finished_at = ?, outcome = ?, downtime_ms = ?, summary = ? WHERE number = ?",
                (_write(now), outcome, downtime_ms, summary, number),
            )
            if applied:
                self._set_fact("applied", applied)
            if downtime_kind:
                known = [int(text) for text in self.fact(_DOWNTIME + downtime_kind).split()]
                kept = [*known, downtime_ms][-KEPT:]
                self._set_fact(_DOWNTIME + downtime_kind, " ".join(map(str, kept)))

    def close_interrupted(self, now: datetime) -> int:
        """Mark passes and intents of a process that died; returns how many passes there were."""
        with self._transaction():
            cursor = self._db.execute(
                "UPDATE passes SET outcome = 'interrupted', finished_at = ?, summary = 'the agent died'"
                " WHERE outcome = 'running'",
                (_write(now),),
            )
            self._db.execute("UPDATE intents SET outcome = 'interrupted' WHERE outcome = 'running'")
        return cursor.rowcount

    def begin(self, intent: str, *, pass_number: int, action: str, kind: str, spec_digest: str, now: datetime) -> None:
        """Record an intent before anything is done about it. Instances are ours only by this record (I8)."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO intents (id, pass, action, kind, spec_digest, outcome, started_at)"
                " VALUES (?, ?, ?, ?, ?, 'running', ?)",
                (intent, pass_number, action, kind, spec_digest, _write(now)),
            )

    def finish(self, intent: str, *, outcome: str, error: str, changes: Sequence[Change], now: datetime) -> None:
        """Record an intent's outcome and everything that is remembered of it, in one transaction."""
        with self._transaction():
            self._db.execute(
                "UPDATE intents SET outcome = ?, error = ?, finished_at = ? WHERE id = ?",
                (outcome, error, _write(now), intent),
            )
            self._apply_all(changes, now)

    def apply(self, changes: Sequence[Change], now: datetime) -> None:
        """Record changes that belong to no intent: a person's `retry`, an event."""
        if changes:
            with self._transaction():
                self._apply_all(changes, now)

    def put_signatures(self, signatures: Mapping[int, str], note: Note | None, now: datetime) -> None:
        """Keep the node's signatures of its statements, by their numbers."""
        with self._transaction():
            self.chain.sign(signatures)
            if note is not None:
                self._note(note, now)

    def _apply_all(self, changes: Sequence[Change], now: datetime) -> None:
        for change in changes:
            self._apply(change, now)
        if any(isinstance(change, PutModel | IssueReceipt | VoidReceipts) for change in changes):
            self._settle(now)

    def _settle(self, now: datetime) -> None:
        """Whatever was written: a model is Active exactly if a receipt stands for it (I2)."""
        proven = self.chain.proven()
        for record in self._models():
            after = settled(record.state, proven=record.manifest in proven)
            if after != record.state:
                cause = (
                    f"receipt {proven[record.manifest]} stands for it"
                    if after == "Active"
                    else f"its receipt is void: {self.chain.last_cause(record.manifest)}"
                )
                self._put_model(replace(record, state=after, since=now, cause=cause[:4096]), now)

    def _apply(self, change: Change, now: datetime) -> None:
        if isinstance(change, PutModel):
            self._put_model(change.record, now)
        elif isinstance(change, ForgetModel):
            self._db.execute("DELETE FROM models WHERE manifest = ?", (change.manifest,))
            for prefix in (_UNLISTED, _CHECK, _RETEST):
                self._db.execute("DELETE FROM facts WHERE name = ?", (prefix + change.manifest,))
            self._void(VoidReceipts(change.manifest, "the model was removed"), now)
        elif isinstance(change, AskCheck | DropCheck | AskRetest):
            self._apply_question(change)
        elif isinstance(change, Reject):
            item = change.rejection
            self._db.execute(
                "INSERT OR REPLACE INTO rejections (subject, model, reason, message, since, snapshot)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (item.subject, item.model, item.reason, item.message, _write(item.since), item.snapshot),
            )
        elif isinstance(change, PutHold):
            held = change.hold
            self._db.execute(
                "INSERT OR REPLACE INTO holds (subject, reason, message, failures, until) VALUES (?, ?, ?, ?, ?)",
                (held.subject, held.reason, held.message, held.failures, _write(held.until)),
            )
        elif isinstance(change, DropHold):
            self._db.execute("DELETE FROM holds WHERE subject = ?", (change.subject,))
        elif isinstance(change, Note):
            self._note(change, now)
        else:
            self._apply_proof(change, now)

    def _apply_question(self, change: AskCheck | DropCheck | AskRetest) -> None:
        if isinstance(change, DropCheck):
            self._db.execute("DELETE FROM facts WHERE name = ?", (_CHECK + change.manifest,))
        else:
            prefix = _CHECK if isinstance(change, AskCheck) else _RETEST
            self._set_fact(prefix + change.manifest, change.cause)

    def _apply_proof(self, change: IssueReceipt | VoidReceipts | CommitGood, now: datetime) -> None:
        if isinstance(change, IssueReceipt):
            self.chain.issue(change, now)
            self._db.execute("DELETE FROM facts WHERE name = ?", (_RETEST + change.subject.manifest,))
        elif isinstance(change, VoidReceipts):
            self._void(change, now)
        else:
            self._commit(change.good)

    def _void(self, change: VoidReceipts, now: datetime) -> None:
        if self.chain.void(change, now):
            row = self._db.execute("SELECT key FROM models WHERE manifest = ?", (change.manifest,)).fetchone()
            key = row[0] if row else change.manifest
            message = f"{key}: what was proven counts no longer: {change.cause}"
            self._note(Note("Normal", "ReceiptVoided", message, subject=key), now)

    def _commit(self, good: LastKnownGood) -> None:
        before = self._good("last_known_good")
        if before is not None and before.target.spec_digest != good.target.spec_digest:
            self._put_good("earlier_good", before)
        self._put_good("last_known_good", good)

    def _put_good(self, table: Literal["last_known_good", "earlier_good"], good: LastKnownGood) -> None:
        self._db.execute(
            f"INSERT OR REPLACE INTO {table} (one, target, snapshot, since) VALUES (1, ?, ?, ?)",  # noqa: S608 - one of two
            (good.target.to_json(), good.snapshot, _write(good.since)),
        )

    def _put_model(self, record: ModelRecord, now: datetime) -> None:
        row = self._db.execute("SELECT state FROM models WHERE manifest = ?", (record.manifest,)).fetchone()
        before = row[0] if row else None
        if before != record.state:
            if record.state not in MODEL_TRANSITIONS[before]:
                raise StateCorrupt(f"{record.key} cannot go from {before} to {record.state}")
            message = f"{record.key}: {before or 'absent'} -> {record.state} ({record.cause})"
            level: Literal["Normal", "Warning"] = "Warning" if record.state == "Failed" else "Normal"
            self._note(Note(level, f"Model{record.state}", message, subject=record.key), now)
        self._db.execute(
            "INSERT OR REPLACE INTO models"
            " (manifest, key, state, since, cause, failures, not_before, unlisted_for, size, doubted_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                record.manifest,
                record.key,
                record.state,
                _write(record.since),
                record.cause,
                record.failures,
                _write(record.not_before) if record.not_before else None,
                record.unlisted_for,
                record.size,
                _write(record.doubted_at) if record.doubted_at else None,
            ),
        )

    def _note(self, note: Note, now: datetime) -> None:
        cursor = self._db.execute(
            "INSERT INTO events (at, type, reason, message, subject) VALUES (?, ?, ?, ?, ?)",
            (_write(now), note.type, note.reason, note.message[:4096], note.subject),
        )
        self._db.execute("DELETE FROM events WHERE number <= ?", ((cursor.lastrowid or 0) - KEPT_EVENTS,))

    def count_unlisted(
        self,
        listed: frozenset[str],
        seconds: float,
        there: frozenset[str] | None = None,
        *,
        now: datetime | None = None,
    ) -> None:
        """Add running time to what is not listed, and forget the time of what is again, or is gone.

        Args:
            listed: manifests that the snapshot lists.
            seconds: running time since the last count.
            there: manifests of which the store has something; None where nobody knows.
            now: remembered as the time of this count, as long as there is something to count.
        """
        rows = self._db.execute("SELECT manifest, unlisted_for FROM models").fetchall()
        updates = [
            (0.0 if manifest in listed else spent + seconds, manifest)
            for manifest, spent in rows
            if (manifest in listed and spent) or (manifest not in listed and seconds > 0)
        ]
        recorded = {manifest for manifest, _ in rows}
        leftovers = there - listed - recorded if there is not None else None
        if not (updates or leftovers or recorded - listed or self._facts(_UNLISTED)):
            return  # so that an idle pass writes nothing
        with self._transaction():
            self._db.executemany("UPDATE models SET unlisted_for = ? WHERE manifest = ?", updates)
            if leftovers is not None:
                self._count_leftovers(leftovers, seconds)
            if now is not None:
                self._set_fact(_COUNTED, _write(now))

    def _count_leftovers(self, leftovers: frozenset[str], seconds: float) -> None:
        known = {manifest: float(spent) for manifest, spent in self._facts(_UNLISTED).items()}
        for manifest in sorted(known.keys() - leftovers):
            self._db.execute("DELETE FROM facts WHERE name = ?", (_UNLISTED + manifest,))
        for manifest in sorted(leftovers):
            self._set_fact(
                _UNLISTED + manifest, str(known.get(manifest, 0.0) + (seconds if manifest in known else 0.0))
            )

    def counted_at(self) -> datetime | None:
        """When running time was last counted for something that is not listed."""
        return _maybe(self.fact(_COUNTED))

    def forget_rejections(self, subjects: Sequence[str] | None, note: Note, now: datetime) -> int:
        """Clear remembered failures: of the named subjects, or all with their holds. Returns how many there were."""
        with self._transaction():
            if subjects is None:
                count = self._db.execute("DELETE FROM rejections").rowcount
                self._db.execute("DELETE FROM holds")
            else:
                marks = ",".join("?" * len(subjects))
                statement = f"DELETE FROM rejections WHERE subject IN ({marks})"  # noqa: S608 - only question marks
                count = self._db.execute(statement, tuple(subjects)).rowcount
            if count:
                self._note(note, now)
        return count

    # --- reading --------------------------------------------------------------------------------------------------

    def memory(self, *, starts_since: datetime) -> Memory:
        """Everything that a decision may know of the past.

        Args:
            starts_since: how far back starts of instances are counted.
        """
        receipts = self.chain.standing()
        rejections = [
            Rejection(row[0], row[1], row[2], row[3], _read(row[4]), row[5])
            for row in self._db.execute("SELECT subject, model, reason, message, since, snapshot FROM rejections")
        ]
        holds = [
            Hold(row[0], row[1], row[2], row[3], _read(row[4]))
            for row in self._db.execute("SELECT subject, reason, message, failures, until FROM holds")
        ]
        starts: dict[str, list[datetime]] = {}
        for spec_digest, at in self._db.execute(
            # One that was given up for a newer snapshot says nothing about what was started.
            "SELECT spec_digest, started_at FROM intents"
            " WHERE kind = 'start-instance' AND outcome != 'cancelled' AND started_at > ?",
            (_write(starts_since),),
        ):
            starts.setdefault(spec_digest, []).append(_read(at))
        intents = {
            row[0]
            for row in self._db.execute("SELECT id FROM intents WHERE kind IN ('create-instance', 'start-instance')")
        }
        return Memory(
            models={record.manifest: record for record in self._models()},
            receipts=receipts,
            rejections={item.subject: item for item in rejections},
            holds={item.subject: item for item in holds},
            # An instance that holds a receipt was adopted: its own intent may have been lost with an older journal.
            intents=frozenset(intents | {receipt.intent for receipt in receipts}),
            last_known_good=self._good("last_known_good"),
            earlier_good=self._good("earlier_good"),
            recent_starts={spec: tuple(sorted(times)) for spec, times in starts.items()},
            downtimes={
                kind: tuple(int(text) for text in known.split()) for kind, known in self._facts(_DOWNTIME).items()
            },
            applied=self.fact("applied"),
            suspended=self.fact("suspended"),
            checks=self._facts(_CHECK),
            retests=self._facts(_RETEST),
            leftovers={manifest: float(spent) for manifest, spent in self._facts(_UNLISTED).items()},
        )

    def _facts(self, prefix: str) -> dict[str, str]:
        """Facts of a prefix, by what follows it."""
        rows = self._db.execute("SELECT name, value FROM facts WHERE substr(name, 1, ?) = ?", (len(prefix), prefix))
        return {name[len(prefix) :]: value for name, value in rows}

    def _models(self) -> list[ModelRecord]:
        rows = self._db.execute(
            "SELECT manifest, key, state, since, cause, failures, not_before, unlisted_for, size, doubted_at"
            " FROM models"
        )
        return [
            ModelRecord(
                row[0], row[1], row[2], _read(row[3]), row[4], row[5], _maybe(row[6]), row[7], row[8], _maybe(row[9])
            )
            for row in rows.fetchall()
        ]

    def _good(self, table: Literal["last_known_good", "earlier_good"]) -> LastKnownGood | None:
        row = self._db.execute(f"SELECT target, snapshot, since FROM {table}").fetchone()  # noqa: S608 - one of two
        if row is None:
            return None
        return LastKnownGood(ServingTarget.model_validate_json(row[0]), row[1], _read(row[2]))

    def events(self, *, after: int = 0, limit: int = 100) -> tuple[Event, ...]:
        """Events with a number above `after`, oldest first; the newest `limit` of them."""
        rows = self._db.execute(
            "SELECT number, at, type, reason, message, subject FROM events WHERE number > ?"
            " ORDER BY number DESC LIMIT ?",
            (after, limit),
        ).fetchall()
        return tuple(Event(row[0], _read(row[1]), *row[2:]) for row in reversed(rows))

    def history(self, *, limit: int = 50) -> tuple[PassRecord, ...]:
        """The newest passes, newest first."""
        rows = self._db.execute(
            "SELECT number, started_at, finished_at, snapshot, sequence, outcome, actions, downtime_ms, summary"
            " FROM passes ORDER BY number DESC LIMIT ?",
            (limit,),
        )
        return tuple(PassRecord(row[0], _read(row[1]), _maybe(row[2]), *row[3:]) for row in rows)

    # --- inside ---------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            # A commit that fails leaves the transaction open, in which no other can begin.
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            self._roll_back()
            raise _refusal(error) from error
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._db.in_transaction:  # some failures have ended it already
            self._db.execute("ROLLBACK")

    def _format(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _copy(self) -> sqlite3.Connection:
        """This journal in memory: an older one is only looked at there, as it will be once a pass has written (I9)."""
        memory = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._db.backup(memory)
        self._db.close()
        return memory

    def _migrate(self) -> None:
        before = self._format()
        if before >= SCHEMA_VERSION:
            return
        with self._transaction():
            if before == 0:
                for statement in SCHEMA:
                    self._db.execute(statement)
            for version in range(max(before, 1) + 1, SCHEMA_VERSION + 1):
                for statement in MIGRATIONS[version]:
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _check_version(self) -> None:
        version = self._format()
        if version != SCHEMA_VERSION:
            raise StateCorrupt(
                f"the journal has format {version}, this agent knows {SCHEMA_VERSION}",
                hint="use the agent that wrote it, or a newer one",
            )


def _refusal(error: sqlite3.OperationalError) -> ReconcileError:
    """Why the journal takes nothing now. Nothing is done that it cannot record first."""
    if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
        return NoSpace(f"the journal cannot be written: {error}", hint="free some space on its disk")
    if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
        return StateLocked(f"another process has kept the journal busy for {BUSY_SECONDS} s")
    return DiskFailed(f"the journal cannot be written: {error}")


def _write(moment: datetime) -> str:
    # Microseconds, fixed width: text comparison is time comparison.
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _read(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _maybe(text: str | None) -> datetime | None:
    return _read(text) if text else None

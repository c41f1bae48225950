"""What is remembered between passes: models, receipts, failures, questions. Written by change, read as a whole."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from reconciler.journal.database import Database, maybe_time, read_time, write_time
from reconciler.memory import (
    AskCheck,
    AskRetest,
    CommitGood,
    CountHeal,
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
from reconciler.proof import settled
from schemas.errors import StateCorrupt
from schemas.memory import MODEL_TRANSITIONS, Hold, LastKnownGood, Memory, ModelRecord, Rejection
from schemas.target import ServingTarget

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from reconciler.memory import Change

KEPT_EVENTS: Final = 10_000
"""Rows kept: years of a quiet node, days of a troubled one, a few MiB at most."""

KEPT_REJECTIONS: Final = 1_000
"""Subjects whose failure is remembered. Each is one that a network signed, and that failed here."""

KEPT_HOLD: Final = timedelta(days=30)
"""How long after its end a hold is remembered, for how often its subject has failed in a row."""

CHECK: Final = "check/"
"""Facts of this name say which manifests a person wants to be hashed, and why."""
RETEST: Final = "retest/"
"""Facts of this name say which manifests' answers are in doubt, and why."""
UNLISTED: Final = "unlisted/"
"""Facts of this name count the running time of what lies in the store without a record, and is not listed."""
HEAL: Final = "heal/"
"""Facts: by what was changed from outside, when it was given back: times, the newest last."""
KEPT_HEALS: Final = 1000
"""The most that a budget can count (`schemas.node.HealPolicy`)."""
DOWNTIME: Final = "downtime/"
"""Facts: by kind of change, how long the last ones interrupted the service: milliseconds, the newest last."""


class Recollection(Database):
    """What decisions may know of the past. Every writing method belongs into a transaction."""

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
            for prefix in (UNLISTED, CHECK, RETEST):
                self._db.execute("DELETE FROM facts WHERE name = ?", (prefix + change.manifest,))
            self._void(VoidReceipts(change.manifest, "the model was removed"), now)
        elif isinstance(change, AskCheck | DropCheck | AskRetest):
            self._apply_question(change)
        elif isinstance(change, Reject):
            item = change.rejection
            self._db.execute(
                "INSERT OR REPLACE INTO rejections (subject, model, reason, message, since, snapshot)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (item.subject, item.model, item.reason, item.message, write_time(item.since), item.snapshot),
            )
            self._db.execute(
                "DELETE FROM rejections WHERE subject NOT IN"
                " (SELECT subject FROM rejections ORDER BY since DESC, subject LIMIT ?)",
                (KEPT_REJECTIONS,),
            )
        elif isinstance(change, PutHold):
            held = change.hold
            self._db.execute(
                "INSERT OR REPLACE INTO holds (subject, reason, message, failures, until) VALUES (?, ?, ?, ?, ?)",
                (held.subject, held.reason, held.message, held.failures, write_time(held.until)),
            )
            self._db.execute("DELETE FROM holds WHERE until < ?", (write_time(now - KEPT_HOLD),))
        elif isinstance(change, DropHold):
            self._db.execute("DELETE FROM holds WHERE subject = ?", (change.subject,))
        elif isinstance(change, Note):
            self._note(change, now)
        elif isinstance(change, CountHeal):
            known = self.fact(HEAL + change.key).split()
            self._set_fact(HEAL + change.key, " ".join([*known, write_time(now)][-KEPT_HEALS:]))
        else:
            self._apply_proof(change, now)

    def _apply_question(self, change: AskCheck | DropCheck | AskRetest) -> None:
        if isinstance(change, DropCheck):
            self._db.execute("DELETE FROM facts WHERE name = ?", (CHECK + change.manifest,))
        else:
            prefix = CHECK if isinstance(change, AskCheck) else RETEST
            self._set_fact(prefix + change.manifest, change.cause)

    def _apply_proof(self, change: IssueReceipt | VoidReceipts | CommitGood, now: datetime) -> None:
        if isinstance(change, IssueReceipt):
            self.chain.issue(change, now)
            self._db.execute("DELETE FROM facts WHERE name = ?", (RETEST + change.subject.manifest,))
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
            (good.target.to_json(), good.snapshot, write_time(good.since)),
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
                write_time(record.since),
                record.cause,
                record.failures,
                write_time(record.not_before) if record.not_before else None,
                record.unlisted_for,
                record.size,
                write_time(record.doubted_at) if record.doubted_at else None,
            ),
        )

    def _note(self, note: Note, now: datetime) -> None:
        cursor = self._db.execute(
            "INSERT INTO events (at, type, reason, message, subject) VALUES (?, ?, ?, ?, ?)",
            (write_time(now), note.type, note.reason, note.message[:4096], note.subject),
        )
        self._db.execute("DELETE FROM events WHERE number <= ?", ((cursor.lastrowid or 0) - KEPT_EVENTS,))

    def memory(self, *, starts_since: datetime) -> Memory:
        """Everything that a decision may know of the past.

        Args:
            starts_since: how far back starts of instances are counted.
        """
        receipts = self.chain.standing()
        rejections = [
            Rejection(row[0], row[1], row[2], row[3], read_time(row[4]), row[5])
            for row in self._db.execute("SELECT subject, model, reason, message, since, snapshot FROM rejections")
        ]
        holds = [
            Hold(row[0], row[1], row[2], row[3], read_time(row[4]))
            for row in self._db.execute("SELECT subject, reason, message, failures, until FROM holds")
        ]
        starts: dict[str, list[datetime]] = {}
        for spec_digest, at in self._db.execute(
            # One that was given up for a newer snapshot says nothing about what was started.
            "SELECT spec_digest, started_at FROM intents"
            " WHERE kind = 'start-instance' AND outcome != 'cancelled' AND started_at > ?",
            (write_time(starts_since),),
        ):
            starts.setdefault(spec_digest, []).append(read_time(at))
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
                kind: tuple(int(text) for text in known.split()) for kind, known in self._facts(DOWNTIME).items()
            },
            applied=self.fact("applied"),
            suspended=self.fact("suspended"),
            checks=self._facts(CHECK),
            retests=self._facts(RETEST),
            heals={key: tuple(map(read_time, known.split())) for key, known in self._facts(HEAL).items()},
            leftovers={manifest: float(spent) for manifest, spent in self._facts(UNLISTED).items()},
        )

    def _models(self) -> list[ModelRecord]:
        rows = self._db.execute(
            "SELECT manifest, key, state, since, cause, failures, not_before, unlisted_for, size, doubted_at"
            " FROM models"
        )
        return [
            ModelRecord(
                row[0],
                row[1],
                row[2],
                read_time(row[3]),
                row[4],
                row[5],
                maybe_time(row[6]),
                row[7],
                row[8],
                maybe_time(row[9]),
            )
            for row in rows.fetchall()
        ]

    def last_known_good(self) -> LastKnownGood | None:
        """What served last, proven."""
        return self._good("last_known_good")

    def _good(self, table: Literal["last_known_good", "earlier_good"]) -> LastKnownGood | None:
        row = self._db.execute(f"SELECT target, snapshot, since FROM {table}").fetchone()  # noqa: S608 - one of two
        if row is None:
            return None
        return LastKnownGood(ServingTarget.model_validate_json(row[0]), row[1], read_time(row[2]))

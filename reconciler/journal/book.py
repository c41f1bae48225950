"""The journal itself: documents, passes, intents, events, and the running time of what is not listed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from reconciler.downtime import KEPT
from reconciler.journal.database import maybe_time, read_time, write_time
from reconciler.journal.recollection import DOWNTIME, HEAL, KEPT_EVENTS, UNLISTED, Recollection
from reconciler.journal.records import Accepted, Event, PassRecord
from schemas.refusals import MissingDocument

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from reconciler.journal.records import PassOutcome, StoredDocument
    from reconciler.memory import Change, Note

__all__ = ["KEPT_EVENTS", "KEPT_PASSES", "Journal"]

KEPT_PASSES: Final = 2_000
"""Rows kept, as of events. What a pass intended goes with it: an instance that is older than that many passes is this
node's by its receipt, and one that never earned any was cleared away by the next pass (I8)."""

KEPT_PLANS: Final = 20
"""Passes of which the plan and its actions are kept as they were carried out. A plan over thousands of models is
megabytes; that it was made, and what came of it, is a line."""

KEPT_ACCEPTED: Final = 1_000
"""Accepted snapshots whose line is kept: years. Only the newest decides anything."""

_COUNTED: Final = "counted"
"""The fact that says when running time was last counted."""


class Journal(Recollection):
    """The journal of one state directory. One writer at a time; readers need no lock."""

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
        return Accepted(digest, epoch, sequence, tuple(json.loads(signers)), trust_version, *map(read_time, times))

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
                    write_time(accepted.issued_at),
                    write_time(accepted.expires_at),
                    write_time(accepted.accepted_at),
                ),
            )
            self._db.execute(
                "DELETE FROM accepted WHERE number <= (SELECT MAX(number) FROM accepted) - ?", (KEPT_ACCEPTED,)
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

    def kind(self, digest: str) -> str:
        """What a kept document is: `manifest`, `probe`, ...; empty when it is not kept."""
        row = self._db.execute("SELECT kind FROM documents WHERE digest = ?", (digest,)).fetchone()
        return str(row[0]) if row else ""

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

    # --- passes and intents ---------------------------------------------------------------------------------------

    def begin_pass(self, *, snapshot: str, sequence: int, actions: int, plan: str, now: datetime) -> int:
        """Record that a plan is about to be carried out; returns the pass's number."""
        with self._transaction():
            cursor = self._db.execute(
                "INSERT INTO passes (started_at, snapshot, sequence, outcome, actions, plan) VALUES (?, ?, ?, ?, ?, ?)",
                (write_time(now), snapshot, sequence, "running", actions, plan),
            )
            number = int(cursor.lastrowid or 0)
            self._db.execute("DELETE FROM intents WHERE pass <= ?", (number - KEPT_PASSES,))
            self._db.execute("DELETE FROM passes WHERE number <= ?", (number - KEPT_PASSES,))
            self._db.execute("UPDATE intents SET action = '' WHERE pass = ?", (number - KEPT_PLANS,))
            self._db.execute("UPDATE passes SET plan = '' WHERE number = ?", (number - KEPT_PLANS,))
        return number

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
                (write_time(now), outcome, downtime_ms, summary, number),
            )
            if applied:
                self._set_fact("applied", applied)
            if downtime_kind:
                known = [int(text) for text in self.fact(DOWNTIME + downtime_kind).split()]
                kept = [*known, downtime_ms][-KEPT:]
                self._set_fact(DOWNTIME + downtime_kind, " ".join(map(str, kept)))

    def close_interrupted(self, now: datetime) -> int:
        """Mark passes and intents of a process that died; returns how many passes there were."""
        with self._transaction():
            cursor = self._db.execute(
                "UPDATE passes SET outcome = 'interrupted', finished_at = ?, summary = 'the agent died'"
                " WHERE outcome = 'running'",
                (write_time(now),),
            )
            self._db.execute("UPDATE intents SET outcome = 'interrupted' WHERE outcome = 'running'")
        return cursor.rowcount

    def begin(self, intent: str, *, pass_number: int, action: str, kind: str, spec_digest: str, now: datetime) -> None:
        """Record an intent before anything is done about it. Instances are ours only by this record (I8)."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO intents (id, pass, action, kind, spec_digest, outcome, started_at)"
                " VALUES (?, ?, ?, ?, ?, 'running', ?)",
                (intent, pass_number, action, kind, spec_digest, write_time(now)),
            )

    def finish(self, intent: str, *, outcome: str, error: str, changes: Sequence[Change], now: datetime) -> None:
        """Record an intent's outcome and everything that is remembered of it, in one transaction."""
        with self._transaction():
            self._db.execute(
                "UPDATE intents SET outcome = ?, error = ?, finished_at = ? WHERE id = ?",
                (outcome, error, write_time(now), intent),
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

    # --- what is not listed, and what failed ----------------------------------------------------------------------

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
        if not (updates or leftovers or recorded - listed or self._facts(UNLISTED)):
            return  # so that an idle pass writes nothing
        with self._transaction():
            self._db.executemany("UPDATE models SET unlisted_for = ? WHERE manifest = ?", updates)
            if leftovers is not None:
                self._count_leftovers(leftovers, seconds)
            if now is not None:
                self._set_fact(_COUNTED, write_time(now))

    def _count_leftovers(self, leftovers: frozenset[str], seconds: float) -> None:
        known = {manifest: float(spent) for manifest, spent in self._facts(UNLISTED).items()}
        for manifest in sorted(known.keys() - leftovers):
            self._db.execute("DELETE FROM facts WHERE name = ?", (UNLISTED + manifest,))
        for manifest in sorted(leftovers):
            self._set_fact(UNLISTED + manifest, str(known.get(manifest, 0.0) + (seconds if manifest in known else 0.0)))

    def counted_at(self) -> datetime | None:
        """When running time was last counted for something that is not listed."""
        return maybe_time(self.fact(_COUNTED))

    def forget_rejections(self, subjects: Sequence[str] | None, note: Note, now: datetime) -> int:
        """Clear remembered failures: of the named subjects, or all with their holds. Returns how many there were."""
        with self._transaction():
            if subjects is None:
                count = self._db.execute("DELETE FROM rejections").rowcount
                count += self._db.execute("DELETE FROM holds").rowcount
                count += self._forget_facts(HEAL)
            else:
                marks = ",".join("?" * len(subjects))
                statement = f"DELETE FROM rejections WHERE subject IN ({marks})"  # noqa: S608 - only question marks
                count = self._db.execute(statement, tuple(subjects)).rowcount
                statement = f"DELETE FROM holds WHERE subject IN ({marks})"  # noqa: S608 - only question marks
                count += self._db.execute(statement, tuple(subjects)).rowcount
                count += sum(self._forget_facts(f"{HEAL}{subject}/") for subject in subjects)
            if count:
                self._note(note, now)
        return count

    # --- what happened --------------------------------------------------------------------------------------------

    def events(self, *, after: int = 0, limit: int = 100) -> tuple[Event, ...]:
        """Events with a number above `after`, oldest first; the newest `limit` of them."""
        rows = self._db.execute(
            "SELECT number, at, type, reason, message, subject FROM events WHERE number > ?"
            " ORDER BY number DESC LIMIT ?",
            (after, limit),
        ).fetchall()
        return tuple(Event(row[0], read_time(row[1]), *row[2:]) for row in reversed(rows))

    def history(self, *, limit: int = 50) -> tuple[PassRecord, ...]:
        """The newest passes, newest first."""
        rows = self._db.execute(
            "SELECT number, started_at, finished_at, snapshot, sequence, outcome, actions, downtime_ms, summary"
            " FROM passes ORDER BY number DESC LIMIT ?",
            (limit,),
        )
        return tuple(PassRecord(row[0], read_time(row[1]), maybe_time(row[2]), *row[3:]) for row in rows)

"""The receipts of the journal: a chain of statements that is only ever added to.

Each row keeps its statement's exact text beside the columns that decisions ask for; `reconcile audit` compares them.
Writing happens inside the journal's transactions. Signatures come later (`reconciler.signing`): a statement is chained
by its content's digest, so that neither a swap nor a locked identity waits for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from schemas.base import API_VERSION
from schemas.digests import digest_text
from schemas.memory import Receipt
from schemas.receipt import ReceiptDocument, ReceiptSubject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reconciler.memory import IssueReceipt, VoidReceipts


INSTANCES_OF_A_SUBJECT: Final = 8
"""Instances of one subject whose receipts decide anything: the one that serves, and a few that a crash left beside it.
One that is older was stopped long ago, for a node runs one."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """Who makes statements."""

    network: str
    node: str
    """Checksummed address of the node's key."""
    agent: str
    """Version of the agent."""


@dataclass(frozen=True, slots=True)
class ChainRow:
    """One row, as it lies there."""

    number: int
    subject: str
    manifest: str
    intent: str
    evidence: str
    """Empty for none."""
    previous: str
    """Empty for the first."""
    digest: str
    issued_at: str
    voided_at: str
    """Empty while nothing has ended it."""
    void_cause: str
    outcome: str
    strength: str
    content: str
    """Empty for a receipt from before statements were kept."""
    signature: str
    """Empty while it is awaited."""


class Chain:
    """The table of statements, behind the journal's connection."""

    def __init__(self, db: Any) -> None:
        self._db = db
        self.issuer: Issuer | None = None
        """Whose statements these are; needed to add one."""

    # --- adding, inside a transaction -----------------------------------------------------------------------------

    def issue(self, change: IssueReceipt, now: datetime) -> None:
        """Add what came of a validation."""
        number = self._append(
            subject=change.subject,
            subject_digest=change.subject.digest,
            manifest=change.subject.manifest,
            intent=change.intent,
            evidence=change.evidence,
            outcome=change.outcome,
            message=change.message,
            strength=change.strength,
            now=now,
        )
        if change.outcome == "fail":
            self._end(change.subject.digest, f"statement {number}: {change.message}", number, now)

    def void(self, change: VoidReceipts, now: datetime) -> int:
        """End what stands of a manifest, or of one subject of it; returns how many subjects that were."""
        rows = self._db.execute(
            "SELECT subject, MAX(number) FROM receipts WHERE voided_at IS NULL AND outcome = 'pass' AND manifest = ?"
            " AND (? = '' OR subject = ?) GROUP BY subject ORDER BY subject",
            (change.manifest, change.subject, change.subject),
        ).fetchall()
        for subject, newest in rows:
            content, intent = self._db.execute(
                "SELECT content, intent FROM receipts WHERE number = ?", (newest,)
            ).fetchone()
            number = self._append(
                subject=ReceiptDocument.model_validate_json(content).subject if content else None,
                subject_digest=subject,
                manifest=change.manifest,
                intent=intent,
                evidence=None,
                outcome="void",
                message=change.cause,
                strength="",
                now=now,
            )
            self._end(subject, change.cause, number, now)
        return len(rows)

    def _end(self, subject: str, cause: str, before: int, now: datetime) -> None:
        self._db.execute(
            "UPDATE receipts SET voided_at = ?, void_cause = ?"
            " WHERE subject = ? AND number < ? AND voided_at IS NULL AND outcome = 'pass'",
            (written(now), cause, subject, before),
        )

    def _append(
        self,
        *,
        subject: ReceiptSubject | None,
        subject_digest: str,
        manifest: str,
        intent: str,
        evidence: str | None,
        outcome: Any,
        message: str,
        strength: str,
        now: datetime,
    ) -> int:
        if self.issuer is None:
            raise ValueError("a journal makes statements only for the node that it was told of")
        number = self.last_number() + 1
        row = self._db.execute("SELECT digest FROM receipts ORDER BY number DESC LIMIT 1").fetchone()
        previous = row[0] if row else None
        content = ReceiptDocument(
            api_version=API_VERSION,
            kind="Receipt",
            network=self.issuer.network,
            node=self.issuer.node,
            number=number,
            previous=previous,
            issued_at=now.astimezone(UTC).replace(microsecond=0),
            outcome=outcome,
            message=message[:4096],
            strength=strength,
            subject_digest=subject_digest,
            subject=subject,
            intent=intent,
            evidence=evidence,
            agent=self.issuer.agent,
        ).to_json()
        self._db.execute(
            "INSERT INTO receipts (number, subject, manifest, intent, evidence, previous, digest, issued_at, outcome,"
            " strength, content) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                subject_digest,
                manifest,
                intent,
                evidence or "",
                previous or "",
                digest_text(content),
                written(now),
                outcome,
                strength,
                content,
            ),
        )
        return number

    # --- reading --------------------------------------------------------------------------------------------------

    def last_number(self) -> int:
        """The highest number that was ever given out, whether or not its row is still there."""
        row = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'receipts'").fetchone()
        return int(row[0]) if row else 0

    def standing(self) -> tuple[Receipt, ...]:
        """The newest unvoided receipt of each subject and instance, oldest first; only the last instances of a subject.

        Each swap makes an instance, and a receipt of its own: without a bound every pass would read, and every report
        tell, as many as there ever were swaps.
        """
        rows = self._db.execute(
            "SELECT number, subject, manifest, intent, issued_at, digest, content, signature <> '', strength"
            " FROM receipts WHERE number IN (SELECT newest FROM ("
            "  SELECT MAX(number) AS newest,"
            "  ROW_NUMBER() OVER (PARTITION BY subject ORDER BY MAX(number) DESC) AS place"
            "  FROM receipts WHERE voided_at IS NULL AND outcome = 'pass' GROUP BY subject, intent)"
            " WHERE place <= ?) ORDER BY number",
            (INSTANCES_OF_A_SUBJECT,),
        )
        return tuple(
            Receipt(
                number=number,
                subject=subject,
                manifest=manifest,
                intent=intent,
                issued_at=datetime.fromisoformat(issued_at),
                digest=digest,
                content=content,
                signed=bool(signed),
                strength=strength,
            )
            for number, subject, manifest, intent, issued_at, digest, content, signed, strength in rows
        )

    def proven(self) -> dict[str, int]:
        """Manifests for which a receipt stands, with the number of the newest."""
        rows = self._db.execute(
            "SELECT manifest, MAX(number) FROM receipts WHERE voided_at IS NULL AND outcome = 'pass' GROUP BY manifest"
        )
        return dict(rows.fetchall())

    def last_cause(self, manifest: str) -> str:
        """Why what stood last for a manifest does no longer; empty if nothing ever stood."""
        row = self._db.execute(
            "SELECT void_cause FROM receipts WHERE manifest = ? AND voided_at IS NOT NULL"
            " ORDER BY voided_at DESC, number DESC LIMIT 1",
            (manifest,),
        ).fetchone()
        return str(row[0]) if row else ""

    def rows(self) -> tuple[ChainRow, ...]:
        """Every row, oldest first, for an audit."""
        rows = self._db.execute(
            "SELECT number, subject, manifest, intent, evidence, previous, digest, issued_at,"
            " COALESCE(voided_at, ''), void_cause, outcome, strength, content, signature FROM receipts ORDER BY number"
        )
        return tuple(ChainRow(*row) for row in rows)

    # --- signatures -----------------------------------------------------------------------------------------------

    def unsigned(self, *, limit: int) -> tuple[tuple[int, str], ...]:
        """Statements that wait for their signature: number and text, oldest first."""
        rows = self._db.execute(
            "SELECT number, content FROM receipts WHERE signature = '' AND content <> '' ORDER BY number LIMIT ?",
            (limit,),
        )
        return tuple((row[0], row[1]) for row in rows)

    def pending(self) -> int:
        """How many statements wait for their signature."""
        statement = "SELECT COUNT(*) FROM receipts WHERE signature = '' AND content <> ''"
        return int(self._db.execute(statement).fetchone()[0])

    def sign(self, signatures: Mapping[int, str]) -> None:
        """Keep signatures, by number; one that is there is never replaced."""
        self._db.executemany(
            "UPDATE receipts SET signature = ? WHERE number = ? AND signature = ''",
            [(signature, number) for number, signature in signatures.items()],
        )


def written(moment: datetime) -> str:
    """A time as the rows have it: to the second, because the statement has no more, in the journal's fixed width."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000000Z")

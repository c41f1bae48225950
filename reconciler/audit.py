"""Whether a chain of statements is what its node wrote. Pure: signatures are recovered by whoever calls.

Nothing is believed because it stands somewhere: numbers, links, subjects and what is proven are computed again from the
statements' own bytes. A change anywhere breaks the digest that the next statement carries, or the head's, and the
signature over it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from reconciler.chain import written
from schemas.digests import digest_text
from schemas.receipt import (
    AuditFinding,
    AuditReport,
    ChainEntry,
    ChainHead,
    LegacyReceipt,
    ReceiptDocument,
    StandingReceipt,
)
from schemas.refusals import InvalidSignature

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from reconciler.chain import ChainRow
    from schemas.receipt import ReceiptChain


class Recover(Protocol):
    """Finds out who signed a statement or a head."""

    def __call__(self, content: str, signature: str) -> str:
        """The checksummed address whose key made the signature over exactly this text.

        Raises:
            InvalidSignature: none did.
        """
        ...


@dataclass(slots=True)
class _Walk:
    """A walk along a chain, from its first statement to its last."""

    network: str
    node: str
    recover: Recover
    findings: list[AuditFinding] = field(default_factory=list)
    number: int = 0
    digest: str = ""
    statements: int = 0
    signed: int = 0
    legacy: int = 0
    unsigned: list[int] = field(default_factory=list)
    standing: dict[str, StandingReceipt] = field(default_factory=dict)
    ended: dict[int, ReceiptDocument] = field(default_factory=dict)
    """By number of a receipt: the statement that ended it."""
    of_subject: dict[str, list[int]] = field(default_factory=dict)
    """By subject: receipts that stand."""

    def wrong(self, number: int, reason: str, message: str) -> None:
        """Note a finding."""
        self.findings.append(
            AuditFinding(number=number, reason=reason, message=message[:4096])  # type: ignore[arg-type] # checked by the model
        )

    def step(self, entry: ChainEntry) -> None:
        """Look at the next statement."""
        self.statements += 1
        if entry.legacy is not None and entry.content is None and entry.signature is None:
            self._step_legacy(entry.legacy)
            return
        document = _read(entry.content) if entry.content is not None and entry.legacy is None else None
        if document is None or entry.content is None:
            self.wrong(self.number + 1, "Unreadable", "it is not a statement")
            self.number, self.digest = self.number + 1, ""
            return
        self._link(document.number, document.previous or "")
        self.number, self.digest = document.number, digest_text(entry.content)
        self._check(document)
        self._check_signature(document.number, entry.content, entry.signature)
        self._count(document, signed=entry.signature is not None)

    def _step_legacy(self, receipt: LegacyReceipt) -> None:
        self._link(receipt.number, receipt.previous)
        if self.legacy != self.statements - 1:
            self.wrong(receipt.number, "WrongOrder", "an unsigned receipt of the old form stands behind signed ones")
        self.legacy += 1
        self.of_subject.setdefault(receipt.subject, []).append(receipt.number)
        self.number, self.digest = receipt.number, receipt.digest

    def _link(self, number: int, previous: str) -> None:
        if number != self.number + 1:
            self.wrong(number, "WrongNumber", f"it follows number {self.number}: what stood between them is missing")
        if previous != self.digest:
            self.wrong(
                number, "WrongPrevious", f"it names {previous or 'nothing'} as the one before, which is {self.digest}"
            )

    def _check(self, document: ReceiptDocument) -> None:
        number = document.number
        if document.network != self.network:
            self.wrong(number, "WrongNetwork", f"it is of the network {document.network}")
        if document.node != self.node:
            self.wrong(number, "WrongNode", f"it is a statement of {document.node}")
        if document.subject is None:
            if document.outcome != "void":
                self.wrong(number, "WrongSubject", "it does not say what was validated")
        elif document.subject.digest != document.subject_digest:
            self.wrong(number, "WrongSubject", f"the subject that it spells out is {document.subject.digest}")

    def _check_signature(self, number: int, content: str, signature: str | None) -> None:
        if signature is None:
            self.unsigned.append(number)
            return
        try:
            signer = self.recover(content, signature)
        except (InvalidSignature, ValueError) as error:
            self.wrong(number, "WrongSignature", str(error))
            return
        if signer != self.node:
            self.wrong(number, "WrongSignature", f"it was signed by {signer}, or changed since")
            return
        self.signed += 1
        if self.unsigned:
            # Signatures are made in order: an older one that is missing was taken away.
            self.wrong(self.unsigned[-1], "NotSigned", f"it is not signed, and number {number} behind it is")
            self.unsigned.clear()

    def _count(self, document: ReceiptDocument, *, signed: bool) -> None:
        subject = document.subject_digest
        if document.outcome in ("fail", "void"):
            self.standing.pop(subject, None)
            for number in self.of_subject.pop(subject, ()):
                self.ended[number] = document
        elif document.outcome == "pass" and document.subject is not None:
            self.of_subject.setdefault(subject, []).append(document.number)
            self.standing[subject] = StandingReceipt(
                number=document.number,
                model=document.subject.model,
                manifest=document.subject.manifest,
                subject=subject,
                issued_at=document.issued_at,
                strength=document.strength,
                signed=signed,
            )

    def report(self, source: str, *, claimed: bool, head_signed: bool) -> AuditReport:
        """What it came to."""
        return AuditReport(
            source=source,
            network=self.network,
            node=self.node,
            claimed=claimed,
            statements=self.statements,
            signed=self.signed,
            pending=self.statements - self.legacy - self.signed,
            legacy=self.legacy,
            head_signed=head_signed,
            standing=tuple(sorted(self.standing.values(), key=lambda item: item.number)),
            findings=tuple(self.findings),
        )


def _read(content: str) -> ReceiptDocument | None:
    try:
        return ReceiptDocument.model_validate_json(content)
    except ValueError:
        return None


# --- an export ----------------------------------------------------------------------------------------------------


def audit_export(chain: ReceiptChain, *, source: str, node: str | None, recover: Recover) -> AuditReport:
    """Audit an export by itself.

    Args:
        chain: the export.
        source: what it is called.
        node: the checksummed address that the auditor knows the node by; None takes the one that the export claims.
        recover: finds out who signed.
    """
    walk = _Walk(chain.network, node or chain.node, recover)
    if chain.node != walk.node:
        walk.wrong(0, "WrongNode", f"the export is of {chain.node}")
    for entry in chain.entries:
        walk.step(entry)
    head_signed = _check_head(walk, chain)
    return walk.report(source, claimed=node is None, head_signed=head_signed)


def _check_head(walk: _Walk, chain: ReceiptChain) -> bool:
    try:
        head = ChainHead.model_validate_json(chain.head)
    except ValueError:
        walk.wrong(0, "WrongHead", "it is not a head")
        return False
    if (head.network, head.node) != (walk.network, walk.node):
        walk.wrong(0, "WrongHead", f"the head is of {head.node} in {head.network}")
    if (head.number, head.digest or "") != (walk.number, walk.digest):
        walk.wrong(0, "WrongHead", f"the node said that its chain ends with number {head.number}, {head.digest}")
    if chain.head_signature is None:
        return False
    before = len(walk.findings)
    try:
        signer = walk.recover(chain.head, chain.head_signature)
    except (InvalidSignature, ValueError) as error:
        walk.wrong(0, "WrongSignature", f"the head: {error}")
    else:
        if signer != walk.node:
            walk.wrong(0, "WrongSignature", f"the head was signed by {signer}, or changed since")
    for number in walk.unsigned:
        # Whoever could sign the head could sign everything before it, and an export does.
        walk.wrong(number, "NotSigned", "it is not signed, and the head is")
    return len(walk.findings) == before


def forks(chains: Sequence[tuple[str, ReceiptChain]]) -> tuple[tuple[str, AuditFinding], ...]:
    """Exports of one node that tell two histories: each must be the beginning of the longer one.

    Args:
        chains: exports with what they are called.

    Returns:
        By the name of the shorter export: what is different.
    """
    found: list[tuple[str, AuditFinding]] = []
    longest: dict[tuple[str, str], tuple[str, list[str]]] = {}
    for name, chain in sorted(chains, key=lambda item: -len(item[1].entries)):
        digests = [_digest(entry) for entry in chain.entries]
        known = longest.setdefault((chain.network, chain.node), (name, digests))
        pairs = enumerate(zip(digests, known[1], strict=False), start=1)
        number = next((at for at, (one, other) in pairs if one != other), 0)
        if number:
            message = f"number {number} is another statement than in {known[0]}: the node told two histories"
            found.append((name, AuditFinding(number=number, reason="Forked", message=message)))
    return tuple(found)


def _digest(entry: ChainEntry) -> str:
    if entry.content is not None:
        return digest_text(entry.content)
    return entry.legacy.digest if entry.legacy is not None else ""


# --- this node's journal ------------------------------------------------------------------------------------------


def entry_of(row: ChainRow) -> ChainEntry:
    """A row as a link of an export."""
    if row.content:
        return ChainEntry(content=row.content, signature=row.signature or None)
    legacy = LegacyReceipt(
        number=row.number,
        subject=row.subject,
        manifest=row.manifest,
        intent=row.intent,
        evidence=row.evidence,
        previous=row.previous,
        issued_at=row.issued_at,
    )
    return ChainEntry(legacy=legacy)


def _entry(row: ChainRow) -> ChainEntry:
    try:
        return entry_of(row)
    except ValueError:  # a column that no agent has written
        return ChainEntry()


def audit_journal(
    rows: Iterable[ChainRow], *, last_number: int, network: str, node: str, recover: Recover
) -> AuditReport:
    """Audit a node's own journal: the statements, and that decisions are made from nothing else.

    Args:
        rows: every row, in order.
        last_number: the highest number that was ever given out.
        network: the node's network.
        node: the node's checksummed address.
        recover: finds out who signed.
    """
    rows = tuple(rows)
    walk = _Walk(network, node, recover)
    for row in rows:
        walk.step(_entry(row))
    if walk.number != last_number:
        walk.wrong(0, "WrongHead", f"number {last_number} was given out, and the last one here is {walk.number}")
    for row in rows:
        for column, got, wanted in _columns(row, walk.ended.get(row.number)):
            if got != wanted:
                walk.wrong(row.number, "WrongRow", f"its {column} is {got or 'empty'}, and follows to be {wanted}")
    return walk.report("journal", claimed=False, head_signed=True)


def _columns(row: ChainRow, ended: ReceiptDocument | None) -> Iterable[tuple[str, str, str]]:
    """Columns, what they are, and what they must be after the statements."""
    document = _read(row.content) if row.content else None
    if document is not None:
        manifest = document.subject.manifest if document.subject is not None else row.manifest
        yield "number", str(row.number), str(document.number)
        yield "subject", row.subject, document.subject_digest
        yield "manifest", row.manifest, manifest
        yield "intent", row.intent, document.intent
        yield "evidence", row.evidence, document.evidence or ""
        yield "previous", row.previous, document.previous or ""
        yield "digest", row.digest, digest_text(row.content)
        yield "issued_at", row.issued_at, written(document.issued_at)
        yield "outcome", row.outcome, document.outcome
        yield "strength", row.strength, document.strength
    else:
        legacy = _entry(row).legacy
        yield "digest", row.digest, legacy.digest if legacy is not None else ""
        yield "outcome", row.outcome, "pass"
        yield "strength", row.strength, ""
        yield "signature", row.signature, ""
    if ended is not None:
        cause = ended.message if ended.outcome == "void" else f"statement {ended.number}: {ended.message}"
        yield "voided_at", row.voided_at, written(ended.issued_at)
        yield "void_cause", row.void_cause, cause
    elif row.content:
        # What was void before there were statements of it carries its cause here alone.
        yield "voided_at", row.voided_at, ""
        yield "void_cause", row.void_cause, ""

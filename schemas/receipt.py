"""Receipts: a node's signed word that a subject passed its probe, failed it, or counts no longer. Chained by hash.

The chain is a list of statements. Which subjects are proven follows from it alone: a `pass` proves its subject until a
later `fail` or `void` about the same one. What is signed, and what the next statement's `previous` covers, are the
exact bytes of a statement as it was written, never a re-serialised form.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, StringConstraints

from schemas.base import (
    Address,
    Count,
    Digest,
    Document,
    Frozen,
    ImageRef,
    Json,
    ModelKey,
    Name,
    Positive,
    Text,
    Time,
    Version,
)
from schemas.digests import digest_text
from schemas.observation import accelerator_name
from schemas.target import specification_digest, subject_digest

if TYPE_CHECKING:
    from schemas.observation import Hardware
    from schemas.target import ServingTarget

Outcome = Literal["pass", "fail", "inconclusive", "void"]
Signature = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{128}1[bc]$")]

CONTENT_LIMIT = 2**16
"""Characters of one statement: thirty times what one takes."""
MAX_ENTRIES = 1_000_000
"""Statements of one export: centuries of a node."""


class ReceiptGpu(Frozen):
    """A GPU of the machine that answered."""

    name: Text
    """Its model."""
    uuid: Text
    """Its UUID."""
    driver: Text
    """Version of its driver."""


class ReceiptSubject(Frozen):
    """What a validation was about, field by field. Its digest is computed from these fields and nothing else."""

    engine: Text
    """The engine."""
    version: Version
    """Its version."""
    backend: Text
    """How it was run: `docker`, `podman`, `native`."""
    image: ImageRef | None = None
    """The container image, by digest."""
    environment: Digest | None = None
    """The native environment."""
    engine_args: dict[str, Json]
    """Arguments of the engine, as the snapshot's form writes them; defaults included."""
    isolation: dict[str, Json]
    """Restrictions of the instance."""
    resources: dict[str, Json]
    """Bounds of the instance."""
    model: ModelKey
    """The model, as people call it."""
    manifest: Digest
    """The model's identity."""
    probe: Digest
    """The probe that was asked."""
    gpus: tuple[ReceiptGpu, ...] = ()
    """The machine's GPUs, in the order of their UUIDs."""
    processor: Text | None = None
    """The processor, on a machine without a GPU."""

    @classmethod
    def of(cls, target: ServingTarget, hardware: Hardware) -> ReceiptSubject:
        """The subject of a target on a machine."""
        return cls(
            engine=target.engine,
            version=target.version,
            backend=target.backend,
            image=target.image,
            environment=target.environment,
            engine_args=_plain(target.engine_args),
            isolation=_plain(target.isolation),
            resources=_plain(target.resources),
            model=target.model,
            manifest=target.manifest,
            probe=target.probe.digest,
            gpus=tuple(ReceiptGpu(name=gpu.name, uuid=gpu.uuid, driver=gpu.driver) for gpu in hardware.gpus),
            processor=None if hardware.gpus else hardware.processor,
        )

    @property
    def accelerator(self) -> str:
        """What computed, as it goes into the digest."""
        return accelerator_name(((gpu.name, gpu.uuid, gpu.driver) for gpu in self.gpus), self.processor or "")

    @property
    def spec_digest(self) -> str:
        """Identity of the instance that answered."""
        return specification_digest(
            engine=self.engine,
            version=self.version,
            backend=self.backend,
            image=self.image,
            environment=self.environment,
            engine_args=_text(self.engine_args),
            isolation=_text(self.isolation),
            resources=_text(self.resources),
            model=self.model,
            manifest=self.manifest,
        )

    @property
    def digest(self) -> str:
        """The subject's identity: what rejections, `retry` lists and receipts name."""
        return subject_digest(self.spec_digest, self.probe, self.accelerator)


def _plain(value: Frozen) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(value.to_json())
    return loaded


def _text(fields: dict[str, Any]) -> str:
    # As pydantic writes it: compact, in the order in which the fields stand.
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


class ReceiptDocument(Document):
    """One statement of a node about one subject."""

    api_version: Literal["reconcile/v1alpha1"]
    """Version of this document's form."""
    kind: Literal["Receipt"]
    """`Receipt`."""
    network: Name
    """The network of the node."""
    node: Address
    """The checksummed address of the node's key."""
    number: Positive
    """1, 2, 3 ... within the life of the node's journal."""
    previous: Digest | None = None
    """Digest of the statement before; absent for the first."""
    issued_at: Time
    """When the probe was judged, or the subject changed."""
    outcome: Outcome
    """`pass` proves the subject from here on, `fail` and `void` end that, `inconclusive` changes nothing."""
    message: Text
    """For people: what was checked and what came of it, or why it counts no longer."""
    strength: Text = ""
    """What kind of test it was, in the validation's own words: how much a `pass` can tell."""
    subject_digest: Digest
    """The subject's identity."""
    subject: ReceiptSubject | None = None
    """The subject, spelled out; absent in a `void` of a receipt from before subjects were kept."""
    intent: Text = ""
    """Id of the intent that created the instance which answered."""
    evidence: Digest | None = None
    """Digest of everything that it answered; absent where nothing was asked, or nothing answered."""
    agent: Text
    """Version of the agent."""


class LegacyReceipt(Frozen):
    """A receipt from before receipts were documents: chained by its digest, not signed."""

    number: Positive
    subject: Text
    manifest: Text
    intent: Text
    evidence: Text
    previous: Text
    """Digest of the one before; empty for the first."""
    issued_at: Text
    """As it was written: with microseconds."""

    @property
    def digest(self) -> str:
        """What the next one's `previous` must be."""
        parts = (self.previous, self.subject, self.manifest, self.intent, self.evidence, self.issued_at)
        return digest_text("|".join(("receipt/1", *parts)))


class ChainEntry(Frozen):
    """One statement with its signature, or one from before there were any."""

    content: Annotated[str, StringConstraints(max_length=CONTENT_LIMIT)] | None = None
    """The statement's exact text: a `Receipt` document."""
    signature: Signature | None = None
    """EIP-712 signature of the node; absent while the identity is locked."""
    legacy: LegacyReceipt | None = None
    """Instead of both."""


class ChainHead(Document):
    """Where the chain ended when it was exported: what was cut off behind it is missed."""

    api_version: Literal["reconcile/v1alpha1"]
    """Version of this document's form."""
    kind: Literal["ReceiptHead"]
    """`ReceiptHead`."""
    network: Name
    """The network of the node."""
    node: Address
    """The checksummed address of the node's key."""
    number: Count
    """Number of the last statement; 0 where there is none."""
    digest: Digest | None = None
    """Digest of the last statement."""
    issued_at: Time
    """When it was exported."""
    agent: Text
    """Version of the agent."""


class ReceiptChain(Document):
    """All statements of a node, for an auditor who has nothing else but the node's address."""

    format_version: Literal["1"] = "1"
    """Version of this form."""
    kind: Literal["ReceiptChain"] = "ReceiptChain"
    """`ReceiptChain`."""
    network: Name
    """The network of the node."""
    node: Address
    """The checksummed address of the node's key."""
    entries: Annotated[tuple[ChainEntry, ...], Field(max_length=MAX_ENTRIES)]
    """Every statement, from the first."""
    head: Annotated[str, StringConstraints(max_length=CONTENT_LIMIT)]
    """The exact text of a `ReceiptHead` document."""
    head_signature: Signature | None = None
    """EIP-712 signature of the node; absent if the identity was locked at the export."""


# --- what an audit says -------------------------------------------------------------------------------------------


class AuditFinding(Frozen):
    """Something in a chain that cannot be as the node wrote it."""

    number: Count
    """The statement; 0 for the chain as a whole."""
    reason: Literal[
        "Unreadable",
        "WrongNumber",
        "WrongPrevious",
        "WrongNetwork",
        "WrongNode",
        "WrongSubject",
        "WrongSignature",
        "NotSigned",
        "WrongHead",
        "WrongRow",
        "WrongOrder",
        "Forked",
    ]
    """Stable CamelCase reason."""
    message: Text
    """For people."""


class StandingReceipt(Frozen):
    """A statement that proves its subject now."""

    number: Positive
    model: Text
    manifest: Text
    subject: Text
    issued_at: Time
    strength: Text = ""
    signed: bool


class AuditReport(Document):
    """What the chain of one node comes to."""

    format_version: Literal["1"] = "1"
    """Version of this form."""
    kind: Literal["AuditReport"] = "AuditReport"
    """`AuditReport`."""
    source: Text
    """What was audited: a file, or the journal."""
    network: Text
    node: Text
    claimed: bool = False
    """Whether the node's address was taken from the export itself: compare it with one from elsewhere."""
    statements: Count
    """How many there are."""
    signed: Count
    """With a signature of the node."""
    pending: Count
    """Waiting for their signature: they prove nothing to others yet."""
    legacy: Count
    """From before receipts were signed."""
    head_signed: bool = True
    """Whether the end of an export is signed; always so for a journal."""
    standing: tuple[StandingReceipt, ...]
    """What is proven, by the statements alone."""
    findings: tuple[AuditFinding, ...]
    """What is wrong; empty for a chain that holds."""

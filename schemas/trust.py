"""Trust documents and signature files: who may sign, and what a signature file holds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from schemas.base import Address, Count, Digest, Document, Frozen, Name, Positive, Time

RoleName = Literal["root", "snapshot", "timestamp"]
MAX_SIGNERS = 64


class Role(Frozen):
    """The addresses that may sign for a role, and how many of them must."""

    threshold: Annotated[int, Field(ge=1, le=MAX_SIGNERS)]
    """Distinct signers needed."""
    signers: Annotated[tuple[Address, ...], Field(min_length=1, max_length=MAX_SIGNERS)]
    """Checksummed addresses (ERC-55)."""

    @model_validator(mode="after")
    def _threshold_is_reachable(self) -> Role:
        if len({signer.lower() for signer in self.signers}) != len(self.signers):
            raise ValueError("a signer is listed twice")
        if self.threshold > len(self.signers):
            raise ValueError("the threshold exceeds the number of signers")
        return self


class Roles(Frozen):
    """Every role of a network."""

    root: Role
    """Changes trust and raises the epoch."""
    snapshot: Role
    """Signs snapshots."""
    timestamp: Role | None = None
    """Optional online key that says which snapshot is the newest."""


class TrustMetadata(Frozen):
    """Identity and validity of a trust document."""

    network: Name
    """The network."""
    version: Positive
    """1, 2, 3 ...: each signed by the thresholds of its predecessor and of itself."""
    epoch: Count = 1
    """Raised here only. Snapshots of a lower epoch are refused, a higher one restarts the sequence."""
    issued_at: Time
    """Not valid before."""
    expires_at: Time
    """Not accepted after."""
    previous: Digest | None = None
    """Digest of version - 1, absent for version 1."""

    @model_validator(mode="after")
    def _chain_is_possible(self) -> TrustMetadata:
        if self.expires_at <= self.issued_at:
            raise ValueError("expiresAt must be later than issuedAt")
        if (self.version == 1) != (self.previous is None):
            raise ValueError("previous is for versions above 1, and needed there")
        return self


class TrustSpec(Frozen):
    """Who may sign what."""

    roles: Roles
    """Roles and their signers."""


class TrustDocument(Document):
    """One version of a network's trust. The node pins version 1 by digest (The Update Framework, section 5.3)."""

    api_version: Literal["reconcile/v1alpha1"]
    """Version of this document's form."""
    kind: Literal["Trust"]
    """`Trust`."""
    metadata: TrustMetadata
    """Identity and validity."""
    spec: TrustSpec
    """Who may sign what."""


class SignatureFile(Document):
    """`<document>.sigs/<address>.json`: one signer's EIP-712 signature over a document's fields and bytes."""

    api_version: Literal["reconcile/v1alpha1"]
    """Version of this document's form."""
    kind: Literal["Signature"]
    """`Signature`."""
    signer: Address
    """Claimed by the file; what counts is the recovered address."""
    content: Digest
    """Digest of the bytes that were signed: tells which version an outdated file belongs to."""
    signature: Annotated[str, StringConstraints(pattern=r"^0x[0-9a-f]{130}$")]
    """r, s, v: 65 bytes."""
    shown: Digest | None = None
    """Digest of what the signer was shown before signing."""

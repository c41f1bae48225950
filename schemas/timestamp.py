"""`timestamp.json`: an online key's short-lived word that a snapshot is the newest.

After the timestamp role of The Update Framework (specification, section 4.6).
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from schemas.base import Count, Digest, Document, Frozen, Name, Positive, Time


class TimestampMetadata(Frozen):
    """Whose word it is, and for how long."""

    network: Name
    """The network."""
    issued_at: Time
    """When it was said. A node takes none that is older than the newest it has taken."""
    expires_at: Time
    """Until when it may be believed: hours, not months."""

    @model_validator(mode="after")
    def _is_a_span(self) -> TimestampMetadata:
        if self.expires_at <= self.issued_at:
            raise ValueError("expiresAt must be later than issuedAt")
        return self


class NewestSnapshot(Frozen):
    """The snapshot that is said to be the newest."""

    epoch: Count
    """Its epoch."""
    sequence: Positive
    """Its sequence."""
    digest: Digest
    """Its content digest."""


class TimestampDocument(Document):
    """Says which snapshot is the newest. It grants nothing: it only lets a node notice that news are withheld."""

    api_version: Literal["reconcile/v1alpha1"]
    """Version of this document's form."""
    kind: Literal["Timestamp"]
    """`Timestamp`."""
    metadata: TimestampMetadata
    """Whose word it is, and for how long."""
    snapshot: NewestSnapshot
    """The snapshot that is the newest."""

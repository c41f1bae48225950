"""What the journal tells, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from datetime import datetime

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

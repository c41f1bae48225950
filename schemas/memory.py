"""What this node remembers, and cannot observe: values that the journal keeps. `reconciler.journal` fills them."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - a constant below is annotated with it
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from datetime import datetime

    from schemas.target import ServingTarget

ModelState = Literal["Pending", "Active", "Inactive", "Failed", "Archived"]

MODEL_TRANSITIONS: Final[Mapping[ModelState | None, frozenset[ModelState]]] = MappingProxyType(
    {
        None: frozenset({"Pending", "Active", "Failed", "Archived"}),
        "Pending": frozenset({"Active", "Inactive", "Failed", "Archived"}),
        "Active": frozenset({"Pending", "Inactive", "Failed", "Archived"}),
        "Inactive": frozenset({"Pending", "Active", "Failed", "Archived"}),
        "Failed": frozenset({"Pending", "Active", "Inactive", "Archived"}),
        "Archived": frozenset({"Pending", "Active", "Inactive", "Failed"}),
    }
)
"""Every transition of a model's state; None is a model that was not here. The journal refuses any other.

A model that has no record, or is said to be archived, becomes `Active` where a crash came between its bytes and their
record: it is found in the store, and passes its probe. `Failed` becomes `Active` without a download
where a `retry` lets the same bytes pass their probe.
"""


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """The journalled state of a model version."""

    manifest: str
    key: str
    state: ModelState
    since: datetime
    cause: str
    failures: int = 0
    """Consecutive failures of download, hash check or validation."""
    not_before: datetime | None = None
    """No attempt before this time (backoff)."""
    unlisted_for: float = 0
    """Running time, seconds, since the model was last listed; 0 while listed."""
    size: int = 0
    doubted_at: datetime | None = None
    """When its bytes or its answers last proved wrong, or were replaced: what was started before may have others."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof that a subject passed its probe on one instance."""

    number: int
    subject: str
    manifest: str
    intent: str
    """The instance that answered."""
    issued_at: datetime
    digest: str
    content: str = ""
    """The exact text of the statement (`schemas.receipt`); empty for one from before there were any."""
    signed: bool = False
    """Whether the node's signature is there already."""
    strength: str = ""
    """What kind of test it was."""


@dataclass(frozen=True, slots=True)
class StaleReceipts:
    """Receipts of one subject that speak for nothing any more."""

    subject: str
    manifest: str
    cause: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """A subject that failed: not tried again until it changes, a `retry` token names it, or a person says so (I5)."""

    subject: str
    model: str
    reason: str
    message: str
    since: datetime
    snapshot: str
    """Digest of the snapshot that wanted it."""


@dataclass(frozen=True, slots=True)
class LastKnownGood:
    """What served last, proven by a receipt."""

    target: ServingTarget
    snapshot: str
    since: datetime


@dataclass(frozen=True, slots=True)
class Hold:
    """A backoff: no attempt at `subject` before `until`."""

    subject: str
    reason: str
    message: str
    failures: int
    until: datetime


@dataclass(frozen=True, slots=True)
class Memory:
    """What the journal contributes to a decision: only what cannot be observed."""

    models: Mapping[str, ModelRecord] = field(default_factory=dict)
    """By manifest digest."""
    receipts: tuple[Receipt, ...] = ()
    """Unvoided ones."""
    rejections: Mapping[str, Rejection] = field(default_factory=dict)
    """By subject."""
    holds: Mapping[str, Hold] = field(default_factory=dict)
    """By subject of the hold: a manifest digest, an image ref, or a spec digest."""
    intents: frozenset[str] = frozenset()
    """Ids of the intents that created instances."""
    last_known_good: LastKnownGood | None = None
    earlier_good: LastKnownGood | None = None
    """What served, proven, before the last known good."""
    stale: tuple[StaleReceipts, ...] = ()
    """Receipts that the journal still counts, and whose subjects have changed: they are left out of `receipts`."""
    recent_starts: Mapping[str, tuple[datetime, ...]] = field(default_factory=dict)
    """By spec digest: when instances of it were started within the restart window."""
    downtimes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By kind of change: milliseconds for which the last ones interrupted the service, the newest last."""
    applied: str = ""
    """Digest of the snapshot that this node last converged to; empty before the first time."""
    suspended: str = ""
    """Why changes are suspended; empty when they are not."""
    checks: Mapping[str, str] = field(default_factory=dict)
    """By manifest digest: models that a person wants to be hashed now, with what was said."""
    retests: Mapping[str, str] = field(default_factory=dict)
    """By manifest digest: models whose answers are in doubt for a reason that their receipts do not know, with it."""
    heals: Mapping[str, tuple[datetime, ...]] = field(default_factory=dict)
    """By what was changed from outside, and where: when it was given back, the newest last."""
    leftovers: Mapping[str, float] = field(default_factory=dict)
    """By manifest digest: running time, seconds, for which something in the store that has no record was not listed."""

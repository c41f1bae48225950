"""What a decision about a node depends on, beyond the rest of its status: lets a plan for it be made elsewhere."""

from __future__ import annotations

from typing import Literal

from schemas.base import Count, Digest, Frozen, Percent, Size, Text, Time
from schemas.node import Backends, NodePolicy
from schemas.target import ServingTarget


class EngineFacts(Frozen):
    """An engine installed beside the agent."""

    engine: Text
    version: Text
    environment: Digest
    """Identity of what is installed."""


class InstanceFacts(Frozen):
    """An instance that carries the node's marks."""

    name: Text
    intent: Text
    """Id of the intent that created it."""
    spec_digest: Text
    status: Literal["created", "running", "exited"]
    health: Literal["healthy", "unhealthy", "unknown"]


class BackendFacts(Frozen):
    """One way to run instances here."""

    unknown: Text = ""
    """Why it could not be looked at; empty when it could."""
    instances: tuple[InstanceFacts, ...] = ()
    not_enforced: tuple[Text, ...] = ()
    """Restrictions that it cannot enforce on this machine."""


class ImageFacts(Frozen):
    """An image that was asked about."""

    name: Text
    """`backend/ref`."""
    id: Text = ""
    """Empty when it is not here."""
    unknown: Text = ""
    """Why it could not be looked for."""


class StoredFacts(Frozen):
    """A model in the store, or one that was looked for."""

    manifest: Digest
    state: Literal["absent", "partial", "quarantined", "archived", "stored", "changed", "unknown"]
    """`changed`: files differ from what was verified, and are hashed before use; `quarantined` ones wait for repair."""
    bytes: Size = 0
    """Of a stored model all, of a partial one those that need not be fetched again."""
    unknown: Text = ""
    """Why it could not be looked for."""


class ReceiptFacts(Frozen):
    """An unvoided receipt."""

    subject: Digest
    manifest: Digest
    intent: Text
    """The instance that answered."""
    issued_at: Time
    digest: Digest


class RejectionFacts(Frozen):
    """A subject that failed and is not tried again."""

    subject: Digest
    model: Text
    reason: Text
    message: Text
    since: Time
    snapshot: Text
    """Digest of the snapshot that wanted it."""


class HoldFacts(Frozen):
    """A backoff."""

    subject: Text
    reason: Text
    message: Text
    failures: Count
    until: Time


class GoodFacts(Frozen):
    """What the node goes back to."""

    target: ServingTarget
    snapshot: Text
    """Digest of the snapshot under which it was proven."""
    since: Time


class StartsFacts(Frozen):
    """When instances of one specification were started lately."""

    spec_digest: Digest
    at: tuple[Time, ...]


class EnvironmentFacts(Frozen):
    """A native environment that is installed."""

    environment: Digest
    lock: Digest
    """The lock that it was installed from."""


class NodeFacts(Frozen):
    """Everything else that the planner looks at. The secrets of a node are not among it."""

    policy: NodePolicy
    """The owner's rules; its own sources are left out."""
    configured: Backends
    """Backends that the owner allows, and what they need not enforce."""
    keep_free: Percent = 0
    """Share of the disk that downloads leave free."""
    engines: tuple[EngineFacts, ...] = ()
    backends: dict[str, BackendFacts] = {}
    """By name: what was seen there."""
    images: tuple[ImageFacts, ...] = ()
    stored: tuple[StoredFacts, ...] = ()
    interpreter: Text = ""
    """What native environments are installed for here."""
    environments: tuple[EnvironmentFacts, ...] = ()
    receipts: tuple[ReceiptFacts, ...] = ()
    rejections: tuple[RejectionFacts, ...] = ()
    holds: tuple[HoldFacts, ...] = ()
    starts: tuple[StartsFacts, ...] = ()
    last_known_good: GoodFacts | None = None
    earlier_good: GoodFacts | None = None
    """What served before it."""
    retests: dict[str, Text] = {}
    """By manifest digest: models whose answers are in doubt, and why."""
    downtimes: dict[str, tuple[Count, ...]] = {}
    """By kind of change: milliseconds for which the last ones interrupted the service."""
    applied: Text = ""
    """Digest of the snapshot that the node last converged to."""
    suspended: Text = ""
    """Why changes are suspended."""

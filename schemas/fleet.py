"""What a snapshot would do to the nodes of an inventory: `reconcile plan --inventory`."""

from __future__ import annotations

from typing import Literal

from schemas.base import Count, Digest, Document, Frozen, ModelKey, Percent, Size, Text, Time
from schemas.plan import Held


class NodeOutlook(Frozen):
    """One node under the snapshot."""

    node: Text
    """Node id."""
    outcome: Literal["changes", "held", "unchanged", "unknown"]
    """`held`: nothing happens now. `unknown`: its agent is too old to publish what a plan needs."""
    as_of: Time | None = None
    """When the node published what this was made from."""
    before: ModelKey | None = None
    """What it serves now."""
    after: ModelKey | None = None
    """What it would serve."""
    assignment: Count = 0
    """Number of the assignment that selects it, from 1; 0 for none."""
    opens: Time | None = None
    """When the maintenance window opens that something waits for. What follows is told as it will be then."""
    actions: Count = 0
    fetch: Size = 0
    """Bytes to fetch; files that it shares with other versions are counted in full."""
    disk_free: Size = 0
    downtime: Literal["none", "swap", "start"] = "none"
    """Whether serving is interrupted."""
    downtime_ms: Count | None = None
    """Milliseconds, as changes of this kind took there; absent where none was measured yet."""
    held: tuple[Held, ...] = ()
    """Changes that would be held back."""


class WaveReach(Frozen):
    """Nodes that come with a wave."""

    wave: Text
    nodes: Count


class RolloutReach(Frozen):
    """How far a rollout has come."""

    key: Text
    share: Percent
    reached: Count
    """Nodes inside."""
    nodes: Count
    """Nodes of the inventory."""
    waves: tuple[WaveReach, ...] = ()
    """Nodes that each wave adds."""


class FleetPlan(Document):
    """What a snapshot would do to every node of an inventory, and in sum."""

    format_version: Literal["1"] = "1"
    """Version of this form."""
    kind: Literal["FleetPlan"] = "FleetPlan"
    network: Text
    snapshot: Digest
    sequence: Count
    nodes: tuple[NodeOutlook, ...]
    fetch_by_host: dict[str, Size]
    """Bytes by the host that is asked first."""
    rollouts: tuple[RolloutReach, ...] = ()
    superseded: Count = 0
    """Documents that were left out, because another is the same node's, and newer."""
    elsewhere: Count = 0
    """Documents that were left out, because they are of nodes of other networks."""
    made_at: Time

"""What a snapshot would do to each node of an inventory, and in sum. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from reconciler.inventory import labels_of, restore
from reconciler.planner import plan
from reconciler.selectors import inside, wave_of
from reconciler.target import assigned, choose
from schemas.fleet import FleetPlan, NodeOutlook, RolloutReach, WaveReach
from schemas.observation import Observed, PartialModel, Present
from schemas.plan import DownloadModel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from reconciler.desired import Desired
    from schemas.assignments import Rollout
    from schemas.plan import Plan
    from schemas.snapshot import SnapshotDocument
    from schemas.status import NodeStatus

Outlook = tuple[NodeOutlook, Mapping[str, int]]
"""What a node would do, and the bytes that it would fetch by the host that is asked first."""
_WAITS: Final = "OutsideWindow"
"""The reason of what waits for a maintenance window."""


def fleet(desired: Desired, statuses: Iterable[NodeStatus], now: datetime) -> FleetPlan:
    """What a snapshot would do to every node of an inventory.

    Args:
        desired: the snapshot with all its manifests.
        statuses: what the nodes published. Those of other networks are left out, and of one node all but the newest.
        now: the time at which holds and windows are judged.
    """
    return summed(desired, outlooks(desired, statuses, now), now)


def outlooks(desired: Desired, statuses: Iterable[NodeStatus], now: datetime) -> Iterator[Outlook | None]:
    """One after the other, what a snapshot would do to each node; None for one of another network.

    Arguments as `fleet`.
    """
    network = _document(desired).metadata.network
    return (_outlook(desired, status, now) if status.network == network else None for status in statuses)


def summed(desired: Desired, found: Iterable[Outlook | None], now: datetime) -> FleetPlan:
    """The plan of a fleet, from what its nodes would do.

    Args:
        desired: the snapshot with all its manifests.
        found: of each document, in the order in which nodes are shown; None for one of another network.
        now: when it was made.
    """
    document = _document(desired)
    newest: dict[str, Outlook] = {}
    superseded = elsewhere = 0
    for one in found:
        if one is None:
            elsewhere += 1
            continue
        other = newest.get(one[0].node)
        superseded += other is not None
        if other is None or _age(one) >= _age(other):
            newest[one[0].node] = one
    fetch: Counter[str] = Counter()
    for _, fetched in newest.values():
        fetch.update(fetched)
    nodes = [outlook for outlook, _ in newest.values()]
    known = list(newest)
    return FleetPlan(
        network=document.metadata.network,
        snapshot=desired.digest,
        sequence=document.metadata.sequence,
        nodes=tuple(nodes),
        fetch_by_host=dict(sorted(fetch.items(), key=lambda item: (-item[1], item[0]))),
        rollouts=tuple(_reach(document, rollout, known) for rollout in _rollouts(document)),
        superseded=superseded,
        elsewhere=elsewhere,
        made_at=now.replace(microsecond=0),
    )


def _age(one: Outlook) -> float:
    """Seconds that grow with time: the newest has the most."""
    return one[0].as_of.timestamp() if one[0].as_of is not None else 0


def _document(desired: Desired) -> SnapshotDocument:
    if desired.document is None:
        raise ValueError("a fleet is planned for a snapshot")
    return desired.document


def _outlook(desired: Desired, status: NodeStatus, now: datetime) -> Outlook:
    restored = restore(status)
    serving = status.serving.model if status.serving is not None else None
    if restored is None or desired.document is None:
        return NodeOutlook(node=status.node, outcome="unknown", as_of=status.updated_at, before=serving), {}
    config, observed = restored
    observed = _for(desired, observed)
    made = plan(desired, observed, config, now)
    outcome = _outcome(made)
    waiting = tuple(item for item in made.held if item.reason == _WAITS)
    if waiting:
        # A window says when, not what: a review at noon has to show what happens at night.
        made = plan(desired, observed, config, now, ignore_windows=True)
    fetch: Counter[str] = Counter()
    for action in made.actions:
        if isinstance(action, DownloadModel):
            fetch[_host(action)] += action.to_fetch
    target = choose(desired, observed, config, now).target
    match = assigned(desired.document, status.node, labels_of(status))
    outlook = NodeOutlook(
        node=status.node,
        outcome=outcome,
        as_of=status.updated_at,
        before=serving,
        after=target.model if target is not None else None,
        assignment=desired.document.spec.assignments.index(match) + 1 if match is not None else 0,
        opens=min((item.until for item in waiting if item.until is not None), default=None),
        actions=len(made.actions),
        fetch=made.cost.fetch,
        disk_free=made.cost.disk_free,
        downtime=made.cost.downtime,
        downtime_ms=made.cost.downtime_ms,
        held=(*waiting, *made.held),
    )
    return outlook, fetch


def _for(desired: Desired, observed: Observed) -> Observed:
    """With what is known about the models of this snapshot: bytes that are left to fetch of partial ones."""
    missing = {
        digest: manifest.size - seen.value.verified_bytes
        for digest, manifest in desired.manifests.items()
        if isinstance(seen := observed.state.models.get(digest), Present) and isinstance(seen.value, PartialModel)
    }
    document = desired.document
    memory = observed.memory
    if document is not None and document.spec.retry:
        kept = {subject: item for subject, item in memory.rejections.items() if subject not in document.spec.retry}
        memory = replace(memory, rejections=kept)
    return replace(observed, state=replace(observed.state, missing=missing), memory=memory)


def _outcome(made: Plan) -> Literal["changes", "held", "unchanged"]:
    if made.actions:
        return "changes"
    return "held" if made.held else "unchanged"


def _host(action: DownloadModel) -> str:
    if not action.sources:
        return "no source"
    address = urlsplit(action.sources[0])
    return address.hostname or address.scheme


def _rollouts(document: SnapshotDocument) -> Iterator[Rollout]:
    seen = set()
    for assignment in document.spec.assignments:
        if assignment.rollout is not None and assignment.rollout not in seen:
            seen.add(assignment.rollout)
            yield assignment.rollout


def _reach(document: SnapshotDocument, rollout: Rollout, nodes: Sequence[str]) -> RolloutReach:
    waves = Counter(wave_of(document.spec, rollout, node) for node in nodes)
    return RolloutReach(
        key=rollout.key,
        share=document.spec.share(rollout),
        reached=sum(inside(document.spec, rollout, node) for node in nodes),
        nodes=len(nodes),
        waves=tuple(WaveReach(wave=wave.name, nodes=waves[wave.name]) for wave in document.spec.waves),
    )

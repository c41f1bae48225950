"""The heart: `plan(desired, observed, node, now) -> Plan`. Pure; the same arguments give the same plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.downtime import kind_of_change, predicted
from reconciler.drift import found
from reconciler.fingerprint import fingerprint
from reconciler.kinds.base import Draft, Situation
from reconciler.kinds.registry import KINDS
from reconciler.suspension import hold_everything
from reconciler.target import choose
from reconciler.trial import detour
from schemas.plan import (
    ArchiveModel,
    Cost,
    DownloadModel,
    Held,
    Plan,
    RestoreModel,
    StartInstance,
    StopInstance,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from reconciler.desired import Desired
    from schemas.node import NodeConfig
    from schemas.observation import Observed
    from schemas.plan import Action


def plan(
    desired: Desired, observed: Observed, node: NodeConfig, now: datetime, *, ignore_windows: bool = False
) -> Plan:
    """What would make this node what the snapshot says.

    Args:
        desired: the snapshot, verified or a draft, with the manifests that are needed.
        observed: what is there, and what is remembered.
        node: the owner's configuration and policy.
        now: the time at which holds, windows and retests are judged.
        ignore_windows: a person at the node wants changes now, whatever the maintenance windows say.
    """
    choice = detour(choose(desired, observed, node, now), desired, observed, now, ignore_windows=ignore_windows)
    situation = Situation(desired, observed, node, now, choice, ignore_windows)
    draft = Draft(held=list(choice.held), trace=list(choice.trace))
    if not observed.memory.suspended:
        for kind in KINDS:
            kind.diff(situation, draft)
            if kind.name == "storage":
                _hold_what_does_not_fit(situation, draft)
    else:
        hold_everything(situation, draft)
    return _finish(situation, draft)


def _hold_what_does_not_fit(situation: Situation, draft: Draft) -> None:
    """Refuse what the disks cannot hold, before byte 0 and with the numbers."""
    state = situation.observed.state
    kept = situation.node.policy.reserve + _kept_free(situation)
    taking = [action for action in draft.actions if isinstance(action, DownloadModel | RestoreModel | ArchiveModel)]
    cold = [action for action in taking if isinstance(action, ArchiveModel) and state.cold_free is not None]
    hot = [action for action in taking if action not in cold]
    _hold_unless(situation, draft, hot, free=state.hardware.disk_free, kept=kept, disk="the state directory's disk")
    if state.cold_free is not None:
        reserve = situation.node.policy.reserve
        _hold_unless(situation, draft, cold, free=state.cold_free, kept=reserve, disk="the cold disk")


def _hold_unless(
    situation: Situation,
    draft: Draft,
    taking: Sequence[DownloadModel | RestoreModel | ArchiveModel],
    *,
    free: int,
    kept: int,
    disk: str,
) -> None:
    needed = sum(_taken(action) for action in taking)
    if needed <= free - kept:
        return
    target = situation.choice.target
    for action in taking:
        if not _taken(action):
            continue
        message = (
            f"{needed} bytes are needed on {disk}, {max(free - kept, 0)} are free beyond the {kept} that are kept in "
            f"reserve: {needed - max(free - kept, 0)} too few"
        )
        draft.hold(action.model, "NoSpace", message)
        draft.actions.remove(action)
        if action.id in draft.staging:
            draft.staging.remove(action.id)
        if target is not None and target.manifest == action.manifest.digest:
            draft.blocked = True


def _taken(action: DownloadModel | RestoreModel | ArchiveModel) -> int:
    """Bytes of its disk that an action takes."""
    if isinstance(action, DownloadModel):
        return max(action.to_fetch, action.room)
    # In cold storage a model is smaller, if it can be compressed at all, which weights hardly can.
    return action.size if isinstance(action, ArchiveModel) else action.room


def _kept_free(situation: Situation) -> int:
    percent = situation.node.keep_free
    if situation.desired.document is not None:
        percent = max(percent, situation.desired.document.spec.policy.gc.keep_free)
    return situation.observed.state.hardware.disk * percent // 100


def _finish(situation: Situation, draft: Draft) -> Plan:
    desired, observed = situation.desired, situation.observed
    actions = tuple(draft.actions)
    return Plan(
        network=situation.node.network,
        node=observed.node_id,
        snapshot=desired.digest or None,
        sequence=desired.document.metadata.sequence if desired.document else 0,
        draft=not desired.verified and desired.document is not None,
        observation=fingerprint(observed),
        outside_window=draft.outside_window,
        actions=actions,
        held=_distinct(draft.held),
        trace=tuple(draft.trace),
        drift=found(situation, actions, draft.held),
        cost=_cost(situation, actions),
        made_at=situation.now.replace(microsecond=0),
    )


def _distinct(held: list[Held]) -> tuple[Held, ...]:
    return tuple(dict.fromkeys(held))


def _cost(situation: Situation, actions: tuple[Action, ...]) -> Cost:
    fetch = sum(action.to_fetch for action in actions if isinstance(action, DownloadModel))
    disk = sum(_taken(action) for action in actions if isinstance(action, DownloadModel | RestoreModel))
    starts = any(isinstance(action, StartInstance) for action in actions)
    stops = any(isinstance(action, StopInstance) and action.drain > 0 for action in actions)
    starts = starts and not any(
        isinstance(action, StartInstance) and action.strategy == "overlap" for action in actions
    )
    kind = kind_of_change(actions, situation.observed.state)
    measured = situation.observed.memory.downtimes
    return Cost(
        fetch=fetch,
        disk=disk,
        disk_free=situation.observed.state.hardware.disk_free,
        downtime="swap" if starts and stops else "start" if starts else "none",
        back=any(isinstance(action, StartInstance) and action.role == "trial" for action in actions),
        downtime_kind=kind,
        downtime_ms=predicted(kind, measured),
        downtime_measured=len(measured.get(kind, ())),
    )

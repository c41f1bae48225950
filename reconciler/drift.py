"""What was changed from outside since the snapshot was applied, field by field, and how often it is given back. Pure.

A repair that does not last is no repair: what is changed again and again is left as it is once the owner's budget is
spent, and said, so that a person finds out who changes it (`policy.heal`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from schemas.observation import Absent, PartialModel, Present, StoredModel, Unknown
from schemas.plan import (
    DownloadModel,
    Drift,
    Held,
    MendInstance,
    PullImage,
    RestoreModel,
    StartInstance,
    VerifyModel,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from reconciler.kinds.base import Situation
    from schemas.memory import Memory
    from schemas.node import HealPolicy
    from schemas.observation import Difference, Instance
    from schemas.plan import Action
    from schemas.target import ServingTarget

SPENT: Final = "HealBudgetSpent"
"""The reason of what is no longer given back."""

_UNCOUNTED: Final = frozenset({"instance", "health", "image", "files"})
"""What has bounds of its own: starts are counted, downloads back off."""


def spent(situation: Situation, subject: str, changed: Sequence[Difference]) -> Held | None:
    """Why what was changed is left as it is: some of it was given back as often as the owner wants; None if not.

    Args:
        situation: what the decision is about.
        subject: what was changed.
        changed: its fields.
    """
    policy = situation.node.policy.heal
    window = timedelta(seconds=policy.window)
    for one in changed:
        recent = _recent(situation.observed.memory, f"{subject}/{one.field}", policy, situation.now)
        if len(recent) >= policy.repairs:
            message = (
                f"somebody keeps changing {one.field}: {one.found}, not {one.expected}; given back {len(recent)} times "
                f"within {policy.window // 60} minutes, and left as it is now"
            )
            return Held(subject=subject, reason=SPENT, message=message, until=_until(recent, policy.repairs, window))
    return None


def counted(drift: Sequence[Drift], memory: Memory, policy: HealPolicy, now: datetime) -> tuple[str, ...]:
    """The keys of what is given back within the budget.

    What is done beyond it is done because nothing would serve otherwise, as the hashing of a model that was changed:
    that is no repair that could be left out, and no reason to wait the longer.

    Args:
        drift: what was found.
        memory: with what was given back before.
        policy: the owner's budget.
        now: the time.
    """
    keys = dict.fromkeys(item.key for item in drift if item.repaired and item.field not in _UNCOUNTED)
    return tuple(key for key in keys if len(_recent(memory, key, policy, now)) < policy.repairs)


def _recent(memory: Memory, key: str, policy: HealPolicy, now: datetime) -> list[datetime]:
    window = timedelta(seconds=policy.window)
    return [at for at in memory.heals.get(key, ()) if now - window < at <= now]


def cause(changed: Sequence[Difference]) -> str:
    """What was changed, in one line."""
    said = (f"{one.field} is {one.found}, not {one.expected}" for one in changed)
    return f"changed outside: {'; '.join(said)}"[:4096]


def found(situation: Situation, actions: Sequence[Action], held: Sequence[Held]) -> tuple[Drift, ...]:
    """Everything that is otherwise than it was applied, and is no snapshot's doing.

    Args:
        situation: what the decision is about.
        actions: what the plan does about it.
        held: what it leaves as it is.
    """
    applied = situation.observed.memory.applied
    target = situation.choice.target
    if not applied or applied != situation.desired.digest or target is None:
        return ()
    left = {item.subject for item in held}
    return (
        *_of_runtime(situation, target, actions, left),
        *_of_models(situation, actions, left),
        *_of_image(situation, target, actions),
    )


def _until(times: Sequence[datetime], repairs: int, window: timedelta) -> datetime:
    """When there is room in the budget again."""
    return sorted(times)[-repairs] + window


# --- what there is ------------------------------------------------------------------------------------------------


def _of_runtime(
    situation: Situation, target: ServingTarget, actions: Sequence[Action], left: set[str]
) -> Iterator[Drift]:
    good = situation.observed.memory.last_known_good
    if good is None or good.target.spec_digest != target.spec_digest or _unseen(situation):
        return
    ours = [item for item in _instances(situation) if item.spec_digest == target.spec_digest]
    running = [item for item in ours if item.status == "running"]
    starts = any(isinstance(action, StartInstance) for action in actions)
    if not running:
        ended = [item for item in ours if item.status == "exited"]
        name = ended[0].name if ended else ""
        said = (ended[0].detail or "ended") if ended else "gone"
        yield Drift(subject="runtime", field="instance", expected="running", found=said, where=name, repaired=starts)
    for item in running:
        mends = any(isinstance(action, MendInstance) and action.instance == item.name for action in actions)
        for one in item.changed:
            repaired = "runtime" not in left and (mends if one.mendable and not starts else starts)
            yield _drift("runtime", one, item.name, repaired=repaired)
        if item.health == "unhealthy":
            said = item.detail or "unhealthy"
            where = item.name
            yield Drift(subject="runtime", field="health", expected="well", found=said, where=where, repaired=starts)


def _of_models(situation: Situation, actions: Sequence[Action], left: set[str]) -> Iterator[Drift]:
    memory = situation.observed.memory
    keys = {spec.manifest.digest: spec.key for spec in situation.choice.serve}
    if situation.choice.target is not None:
        keys.setdefault(situation.choice.target.manifest, situation.choice.target.model)
    for digest, key in keys.items():
        seen = situation.observed.state.models.get(digest)
        about = [
            action
            for action in actions
            if isinstance(action, VerifyModel | DownloadModel | RestoreModel) and action.manifest.digest == digest
        ]
        repaired = bool(about) and key not in left
        value = seen.value if isinstance(seen, Present) else None
        if isinstance(value, StoredModel):
            for one in value.changed if not value.intact else ():
                yield _drift(key, one, one.where, repaired=repaired)
        elif digest in memory.models and isinstance(seen, Absent | Present):
            said = "incomplete" if isinstance(value, PartialModel) else "elsewhere" if value is not None else "gone"
            yield Drift(subject=key, field="files", expected="installed", found=said, repaired=repaired)


def _of_image(situation: Situation, target: ServingTarget, actions: Sequence[Action]) -> Iterator[Drift]:
    if target.image is None:
        return
    seen = situation.observed.state.images.get(f"{target.backend}/{target.image}")
    if isinstance(seen, Absent):
        pulls = any(isinstance(action, PullImage) for action in actions)
        yield Drift(subject=target.image, field="image", expected="here", found="gone", repaired=pulls)


def _drift(subject: str, one: Difference, where: str, *, repaired: bool) -> Drift:
    return Drift(
        subject=subject, field=one.field, expected=one.expected, found=one.found, where=where, repaired=repaired
    )


def _unseen(situation: Situation) -> bool:
    return any(isinstance(seen, Unknown) for seen in situation.observed.state.backends.values())


def _instances(situation: Situation) -> list[Instance]:
    return [
        item
        for seen in situation.observed.state.backends.values()
        if isinstance(seen, Present)
        for item in seen.value
        if item.intent in situation.observed.memory.intents
    ]

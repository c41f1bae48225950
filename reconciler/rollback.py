"""`reconcile rollback`: what a person has to hold against what is wanted, so that what was good before it serves. Pure.

Not a path of its own: the subjects are remembered as failed ones are, and the planner goes back as it always does
(ADR 0001). A signed `retry`, `reconcile retry`, or another subject ends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from reconciler.target import choose, is_stored, refusal
from schemas.errors import NothingToGoBackTo

if TYPE_CHECKING:
    from datetime import datetime

    from reconciler.desired import Desired
    from schemas.memory import LastKnownGood
    from schemas.node import NodeConfig
    from schemas.observation import Observed
    from schemas.target import ServingTarget

REASON: Final = "RolledBackByHand"


@dataclass(frozen=True, slots=True)
class WayBack:
    """What a rollback comes to."""

    good: LastKnownGood
    """What serves afterwards."""
    leave: tuple[ServingTarget, ...]
    """What is held against, so that it does."""


def way_back(desired: Desired, observed: Observed, node: NodeConfig, now: datetime, to: str = "") -> WayBack:
    """What was good before what is wanted now, or what a person names.

    Args:
        desired: the snapshot in force.
        observed: what is there, and what is remembered.
        node: the owner's configuration and policy.
        now: the time.
        to: the digest of the snapshot that wanted it (or how that begins), or the model's `name:version` or name; empty
            for the newest that is not what is wanted or serves now.

    Raises:
        NothingToGoBackTo: nothing else has served here, or it may not run.
    """
    choice = choose(desired, observed, node, now)
    memory = observed.memory
    goods = [good for good in (memory.last_known_good, memory.earlier_good) if good is not None]
    now_chosen = choice.target.spec_digest if choice.target is not None else ""
    why = "nothing else has served on this node and passed its probe"
    for number, good in enumerate(goods):
        target = good.target
        if to and not _is_named(good, to):
            continue
        if target.spec_digest == now_chosen:
            why = f"{target.model} is what serves, or is about to"
            continue
        held = refusal(desired.document, target, observed) if desired.document is not None else None
        if held is not None:
            why = f"{target.model} may not run: {held.reason}: {held.message}"
            continue
        if number and not is_stored(target, observed):
            why = f"{target.model} is no longer stored here"
            continue
        before = (choice.wanted, *(earlier.target for earlier in goods[:number]))
        leave = {
            item.spec_digest: item
            for item in before
            if item is not None and item.spec_digest != target.spec_digest and not _is_refused(desired, item, observed)
        }
        return WayBack(good, tuple(leave.values()))
    if to and not any(_is_named(good, to) for good in goods):
        known = ", ".join(f"{good.target.model} of {good.snapshot}" for good in goods) or "nothing"
        why = f"{to} is not what served here last ({known})"
    raise NothingToGoBackTo(why, hint="`reconcile why runtime` says what is wanted, and `reconcile history` what was")


def _is_named(good: LastKnownGood, to: str) -> bool:
    digest = good.snapshot.removeprefix("blake3:").startswith(to.removeprefix("blake3:"))
    return digest or to in (good.target.model, good.target.model.partition(":")[0])


def _is_refused(desired: Desired, target: ServingTarget, observed: Observed) -> bool:
    return desired.document is not None and refusal(desired.document, target, observed) is not None

"""What a person's `suspend` holds, and what it does not. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from reconciler.kinds.base import Draft
from reconciler.kinds.registry import KINDS
from schemas.observation import Present
from schemas.plan import RouteFront, StartFront, StopInstance

if TYPE_CHECKING:
    from collections.abc import Iterable

    from reconciler.kinds.base import Situation
    from schemas.observation import Observed
    from schemas.plan import Action


def hold_everything(situation: Situation, draft: Draft) -> None:
    """Suspension holds every change but one: what the network has withdrawn is stopped all the same (I6)."""
    trial = Draft()
    for kind in KINDS:
        kind.diff(situation, trial)
    urgent = [
        action
        for action in trial.actions
        if (isinstance(action, StopInstance) and action.cause.startswith("withdrawn by the network"))
        # The door is kept open to what serves anyway.
        or (isinstance(action, StartFront | RouteFront) and not action.needs)
    ]
    draft.actions.extend(urgent)
    draft.trace.extend(trial.trace)
    # What is wrong is wrong under a suspension too, and shows.
    draft.held.extend(trial.held)
    waiting = len(trial.actions) - len(urgent)
    if waiting:
        draft.hold("node", "Suspended", f"{waiting} changes wait: {situation.observed.memory.suspended}")


def until_it_serves(observed: Observed, done: Iterable[Action]) -> Observed:
    """The observation, with a suspension left out until what was stopped has been replaced, or is back.

    A person who suspends changes in the middle of a swap does not want nothing to serve (I6).

    Args:
        observed: what is there, and what is remembered.
        done: what the pass under way has done.
    """
    stopped = any(isinstance(action, StopInstance) and action.drain > 0 for action in done)
    good = observed.memory.last_known_good
    if not (observed.memory.suspended and stopped and good is not None):
        return observed
    proven = {receipt.intent for receipt in observed.memory.receipts}
    serves = any(
        item.spec_digest == good.target.spec_digest and item.status == "running" and item.intent in proven
        for seen in observed.state.backends.values()
        if isinstance(seen, Present)
        for item in seen.value
    )
    return observed if serves else replace(observed, memory=replace(observed.memory, suspended=""))

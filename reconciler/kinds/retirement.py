"""The end of an overlap: what served stops once requests are led to its replacement (I3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.kinds.base import Kind
from reconciler.kinds.runtime import stop
from schemas.plan import RouteFront, ValidateModel

if TYPE_CHECKING:
    from reconciler.kinds.base import Changes, Context, Draft, Situation
    from schemas.plan import Action


def diff(situation: Situation, draft: Draft) -> None:
    """Plan the stop of what serves on until its replacement does."""
    target = situation.choice.target
    if target is None or not any(isinstance(action, RouteFront) for action in draft.actions):
        return  # requests cannot be led over now: it serves on
    # A check that fails, or a route that cannot be written, leaves it as it is: then it goes on serving.
    needs = tuple(action.id for action in draft.actions if isinstance(action, ValidateModel | RouteFront))
    for item in draft.retiring:
        cause = f"{target.model} serves instead, and requests are led there"
        draft.actions.append(stop(item, cause, target.timeouts.drain, needs))


def perform(action: Action, context: Context) -> Changes:
    """It has no actions of its own."""
    raise TypeError(f"not an action of an overlap: {action.kind}, {context.intent}")


KIND = Kind("retirement", (), diff, perform)

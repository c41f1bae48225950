"""Container images: brought here by digest before anything that serves is stopped (I4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reconciler.kinds.base import Kind, may_stage
from reconciler.memory import DropHold, Note
from schemas.observation import Absent, Present, Unknown
from schemas.plan import Action, PullImage

if TYPE_CHECKING:
    from reconciler.kinds.base import Changes, Context, Draft, Situation


def diff(situation: Situation, draft: Draft) -> None:
    """Plan the pull of the target's image where it is not here."""
    target = situation.choice.target
    if target is None or target.image is None:
        return
    seen = situation.observed.state.images.get(f"{target.backend}/{target.image}", Absent())
    if isinstance(seen, Present):
        draft.explain("image", "the image is here, by its digest")
        return
    if isinstance(seen, Unknown):
        draft.hold("image", "BackendUnavailable", seen.reason)
        draft.blocked = True
        return
    if not may_stage(situation, draft, target.image, "image", "the pull waits for its window"):
        return
    action = PullImage(
        id=f"pull/{target.backend}", cause="the image is not here", backend=target.backend, image=target.image
    )
    draft.actions.append(action)
    draft.staging.append(action.id)


def perform(action: Action, context: Context) -> Changes:
    """Pull the image."""
    if not isinstance(action, PullImage):
        raise TypeError(f"not an action on images: {action.kind}")
    adapters = context.adapters
    adapters.backends[action.backend].pull(action.image, progress=adapters.progress, stop=adapters.ports.stop)
    return (DropHold(action.image), Note("Normal", "ImagePulled", f"{action.image} is here", subject=action.image))


KIND = Kind("image", (PullImage,), diff, perform)

"""The list of resource kinds, in the order in which a plan is made and carried out.

A new kind is one file beside this one, its actions in `schemas.plan`, and one line here; `tests/reconciler/kinds`
holds the three together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.kinds import environment, front, image, model, retirement, runtime, storage, validation

if TYPE_CHECKING:
    from reconciler.kinds.base import Kind
    from schemas.plan import Action

KINDS: Final[tuple[Kind, ...]] = (
    model.KIND,
    storage.KIND,
    image.KIND,
    environment.KIND,
    runtime.KIND,
    validation.KIND,
    front.KIND,
    retirement.KIND,
)


def kind_of(action: Action) -> Kind:
    """The kind that performs an action."""
    return next(kind for kind in KINDS if isinstance(action, kind.actions))

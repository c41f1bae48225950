"""Time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.attacks.scene import EXPIRES, PINNED, trust
from tests.attacks.table import attack

if TYPE_CHECKING:
    from tests.attacks.scene import Scene


@attack("Expired")
def expired(scene: Scene) -> None:
    """A genuine snapshot whose time has passed, held back until then."""
    scene.put(scene.snapshot(previous=scene.one, expires=-1))


@attack("NotYetValid")
def predated(scene: Scene) -> None:
    """A genuine snapshot that begins in a hundred years."""
    scene.put(scene.snapshot(previous=scene.one, issued=EXPIRES - 1))


@attack("Expired")
def expired_trust(scene: Scene) -> None:
    """Trust that was left to expire: its signers' word no longer counts for anything new."""
    scene.repository.put_trust(2, trust(2, previous=PINNED, expires=-1), (1, 2))
    scene.put(scene.two)

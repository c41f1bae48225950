"""Rotating trust."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.attacks.scene import PINNED, trust
from tests.attacks.table import attack

if TYPE_CHECKING:
    from tests.attacks.scene import Scene

ROTATED = trust(2, previous=PINNED, roots=(7, 8, 9), signers=(17, 18, 19))
THIRD = trust(3, previous=ROTATED, roots=(7, 8, 9), signers=(17, 18, 19))


@attack("TrustBroken")
def skipped_rotation(scene: Scene) -> None:
    """Version 3 without version 2, signed by everybody whom version 1 or 3 names."""
    scene.repository.put_trust(3, THIRD, (1, 2, 3, 7, 8, 9))


@attack("UnknownSigner")
def rotation_by_the_new_side(scene: Scene) -> None:
    """Those who would take over sign; those who would have to hand over do not."""
    scene.repository.put_trust(2, ROTATED, (7, 8, 9))
    scene.put(scene.two, (17, 18))


@attack("UnknownSigner", holds="push access, a threshold of root keys")
def rotation_by_the_old_side(scene: Scene) -> None:
    """Those who hand over sign alone: the rotation is not in force, and the new signers are strangers."""
    scene.repository.put_trust(2, ROTATED, (1, 2, 3))
    scene.put(scene.two, (17, 18))


@attack("TrustBroken", holds="push access, a threshold of root keys")
def rotation_of_another_chain(scene: Scene) -> None:
    """A genuine document of the same network that does not follow the pinned one."""
    scene.repository.put_trust(2, trust(2, previous=b"another first"), (1, 2, 3))


@attack("TrustBroken", holds="push access, a threshold of root keys")
def trust_with_a_lower_epoch(scene: Scene) -> None:
    """Even root cannot lower the epoch."""
    scene.repository.put_trust(2, trust(2, previous=PINNED, epoch=0), (1, 2, 3))


@attack("WrongNetwork")
def trust_of_another_network(scene: Scene) -> None:
    """Another network's trust in this network's folder."""
    scene.repository.put_trust(2, trust(2, previous=PINNED, network="othernet"), (1, 2, 3))


@attack("Verified", code=0)
def replaced_pin(scene: Scene) -> None:
    """Another first trust document: the node has its own, and never reads that one again."""
    scene.repository.put_trust(1, trust(roots=(7, 8, 9), signers=(17, 18, 19)), (7, 8))

"""Time."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from tests.attacks.scene import EXPIRES, ISSUED, PINNED, trust
from tests.attacks.table import attack
from tests.desired_state.network import NOW, ONLINE, timestamp_text

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


@attack("Expired", learns=True)
def expired_trust(scene: Scene) -> None:
    """Trust that was left to expire: its signers' word no longer counts for anything new."""
    scene.repository.put_trust(2, trust(2, previous=PINNED, expires=-1), (1, 2))
    scene.put(scene.two)


# Withholding what is newer. The role `timestamp` is an online key's: it decides nothing, and its silence is heard.


def _promise(scene: Scene, snapshot: bytes | None, **fields: float) -> None:
    """Let root name an online key, and that key name a snapshot as the newest; None for its silence."""
    scene.repository.put_trust(2, trust(2, previous=PINNED, online=(ONLINE,)), (1, 2))
    if snapshot is not None:
        scene.repository.put_timestamp(timestamp_text(snapshot, **{"issued": ISSUED, "expires": EXPIRES, **fields}))


@attack("FreezeSuspected", holds="the git server", learns=True)
def freeze(scene: Scene) -> None:
    """The newest snapshot is withheld, though the online key says that there is one."""
    _promise(scene, scene.two)


@attack("FreezeSuspected", holds="the git server", learns=True)
def freeze_with_the_timestamp(scene: Scene) -> None:
    """The newest snapshot is withheld, and the timestamps since: the last one has expired."""
    _promise(scene, scene.one, expires=-1)


@attack("FreezeSuspected", holds="the git server", learns=True)
def freeze_without_a_timestamp(scene: Scene) -> None:
    """The timestamp is withheld altogether."""
    _promise(scene, None)


@attack("FreezeSuspected", holds="the git server", code=0, accepts=True)
def freeze_near_expiry(scene: Scene) -> None:
    """Without the role: nothing newer comes, and what is in force expires the day after tomorrow."""
    today = (datetime.now(UTC) - NOW) / timedelta(days=1)
    scene.put(scene.snapshot(previous=scene.one, expires=today + 2))
    scene.repository.commit()
    scene.look()


@attack("FreezeSuspected", holds="push access, the online key", learns=True)
def stolen_online_key(scene: Scene) -> None:
    """A thief of the online key names a snapshot of a far sequence: an alarm, and no power."""
    _promise(scene, scene.snapshot(900))


@attack("Expired", code=0, accepts=True)
def expires_in_force(scene: Scene) -> None:
    """What is in force expires, and nothing newer comes: it is said, and what serves goes on."""
    for seconds in (1, 4, 16, 64):
        # In force while it lasts, however slow this machine is; then its time passes.
        end = datetime.now(UTC) + timedelta(seconds=seconds + 1)
        scene.put(scene.snapshot(previous=scene.one, expires=(end - NOW) / timedelta(days=1)))
        scene.repository.commit()
        if scene.look().accepts:
            break
    while datetime.now(UTC) <= end:
        time.sleep(0.1)

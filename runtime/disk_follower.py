"""Notices that a disk runs low, and that there is room again: for what waits for it, and for who should know of it."""

from __future__ import annotations

import os
import threading
from bisect import bisect
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

LOOK_SECONDS: Final = 5.0
"""Between two looks, each of which is a system call: statvfs(3) has nothing that would tell by itself."""

LEVELS: Final = (0.001, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Shares of a disk at which it makes a difference how much is free. What a node keeps in reserve lies among them."""

STIR: Final = 1.25
"""Factor by which what is free has to move as well: a disk that swings about a level tells of it once."""

_LEAST: Final = 1e-6
"""The share that a full disk counts as, so that factors mean something."""


class DiskFollower:
    """A `runtime.interfaces.Follower` over the disks of some folders."""

    def __init__(self, folders: Iterable[Path], *, every: float = LOOK_SECONDS) -> None:
        """Nothing is looked at yet.

        Args:
            folders: one on each disk; those that are not there (yet) are left out.
            every: seconds between two looks.
        """
        self._folders = tuple(folders)
        self._every = every
        self._told: dict[Path, float] = {}
        """What was free when it was last told of."""
        self._closed = threading.Event()

    def look(self) -> bool:
        """Whether something is worth telling since it was told last. The first look at a disk never is."""
        moved = [self._moved(folder) for folder in self._folders]
        return any(moved)

    def _moved(self, folder: Path) -> bool:
        try:
            seen = os.statvfs(folder)
        except OSError:
            return False
        free = max(seen.f_bavail / max(seen.f_blocks, 1), _LEAST)
        before = self._told.setdefault(folder, free)
        stirred = free >= before * STIR or free * STIR <= before
        if not stirred or bisect(LEVELS, free) == bisect(LEVELS, before):
            return False
        self._told[folder] = free
        return True

    def follow(self, changed: Callable[[], None]) -> None:
        """Look now and then, until closed."""
        while not self._closed.is_set():
            if self.look():
                changed()
            self._closed.wait(self._every)

    def renew(self) -> None:
        """Disks do not come and go with instances."""

    def close(self) -> None:
        """End `follow`."""
        self._closed.set()

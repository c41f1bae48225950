"""Notices the end of processes that hold a lock while they live: supervisors of native instances, and the front."""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from runtime.backends import native_processes as processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path


class LockFollower:
    """A `runtime.interfaces.Follower` over the locks below some folders. Costs nothing while nothing happens."""

    def __init__(self, folders: Iterable[Path]) -> None:
        """Follow nobody yet.

        Args:
            folders: each holds one folder per process, with its `lock` in it.
        """
        self._folders = tuple(folders)
        self._poll = select.epoll()
        self._held: dict[int, tuple[int, Path]] = {}
        """By descriptor: the process that it stands for, and the lock by which it was found."""
        self._lock = threading.Lock()
        self._heard, self._told = os.pipe2(os.O_CLOEXEC)
        self._poll.register(self._heard, select.EPOLLIN)

    def renew(self) -> None:
        """Find those who hold a lock now, and were not followed yet."""
        with self._lock:
            known = {(pid, path) for pid, path in self._held.values()}
            for folder in self._folders:
                for path in folder.glob("*/lock"):
                    with suppress(OSError):
                        pid = processes.lock_holder(path)
                        if pid and (pid, path) not in known:
                            self._take(pid, path)

    def _take(self, pid: int, path: Path) -> None:
        descriptor = os.pidfd_open(pid)
        # Looked at again with the descriptor in hand: an id may have gone to a stranger meanwhile.
        if processes.lock_holder(path) != pid:
            os.close(descriptor)
            return
        self._held[descriptor] = (pid, path)
        self._poll.register(descriptor, select.EPOLLIN)

    def follow(self, changed: Callable[[], None]) -> None:
        """Tell of each end, until closed."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._heard:
                    self._release()
                    return
                with self._lock:
                    self._held.pop(descriptor, None)
                    self._poll.unregister(descriptor)
                    os.close(descriptor)
                changed()

    def close(self) -> None:
        """End `follow`."""
        os.write(self._told, b".")

    def _release(self) -> None:
        with self._lock:
            for descriptor in (*self._held, self._heard, self._told):
                os.close(descriptor)
            self._held.clear()
        self._poll.close()

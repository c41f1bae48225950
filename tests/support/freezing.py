"""Holds one thread of another process still, as a deadlock or a driver that never returns does, while the others go on.

By ptrace(2): a seized and interrupted thread stays where it is until its process is killed, or this one ends.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

SEIZE: Final = 0x4206
INTERRUPT: Final = 0x4207
ALL: Final = 0x40000000
"""PTRACE_SEIZE, PTRACE_INTERRUPT, and __WALL, which waits for threads too."""


def busiest(process: int, seconds: float, but: Collection[int] = ()) -> int:
    """The thread that used the most processor time lately.

    Args:
        process: whose.
        seconds: for how long it is watched.
        but: threads that are not meant.
    """
    before = _ticks(process)
    time.sleep(seconds)
    used = {thread: ticks - before.get(thread, 0) for thread, ticks in _ticks(process).items() if thread not in but}
    return max(used.items(), key=lambda item: item[1])[0]


def _ticks(process: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for path in Path(f"/proc/{process}/task").glob("*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        found[int(path.parent.name)] = int(fields[11]) + int(fields[12])
    return found


def freeze(thread: int) -> bool:
    """Hold a thread still; False where this machine lets nobody do that."""
    held = threading.Event()
    done: list[bool] = []

    def hold() -> None:
        # Whatever is asked of it has to be asked by the thread that seized it.
        libc = ctypes.CDLL(None, use_errno=True)
        libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
        libc.ptrace.restype = ctypes.c_long
        done.append(libc.ptrace(SEIZE, thread, None, None) == 0 and libc.ptrace(INTERRUPT, thread, None, None) == 0)
        if done[0]:
            os.waitpid(thread, ALL)
        held.set()
        if done[0]:
            # Its end has to be taken notice of, or its process would never be over.
            os.waitpid(thread, ALL)

    threading.Thread(target=hold, daemon=True).start()
    held.wait()
    return done[0]

"""Holds a container's GPUs: inherits the locks (see `runtime.gpu_locks`), and ends with the container's last process.

Standalone on purpose, as `native_shim.py` (standard library only, started as `python -I -S gpu_keeper.py CONTAINER WORD
STATUS`): nobody else lives exactly as long as a container. It finds processes by their control group, which carries
the container's id (cgroups(7)), and waits for them through descriptors (pidfd_open(2)). It needs to do nothing with
the locks: the kernel lets them go when it ends.

Arguments: the container's id; a descriptor on which the agent says that it is done starting, or ends; one on which to
say that the keeper is there.
"""

from __future__ import annotations

import os
import select
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

STARTING_SECONDS: Final = 120.0
"""After which the agent hangs: a start has a time bound of its own, far below."""

SETTLE_SECONDS: Final = 30.0
"""After the death of an agent in the middle of a start, for what it asked of the container's engine to happen or not.
The engine goes on with it alone, and answers an agent within as long."""

LOOK_SECONDS: Final = 0.25
"""Between two looks for a container that may be about to start; and after an end, so that what is left can go."""

_READ_LIMIT: Final = 2**16


def processes_of(container: str) -> list[int]:
    """Processes in a container's control group that run, or could again; by their ids."""
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - a hundred thousand names at worst
        if name.isdigit() and container in _read(f"/proc/{name}/cgroup"):
            fields = _read(f"/proc/{name}/stat").rpartition(")")[2].split()
            # A zombie holds nothing, and its descriptor is readable at once.
            if fields and fields[0] not in ("Z", "X"):
                found.append(int(name))
    return sorted(found)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - a kernel file
            return file.read(_READ_LIMIT)
    except OSError:
        return ""


def keep(container: str, word: int) -> None:
    """Return when no process of the container is left, and none can come by the start that is under way.

    Args:
        container: its id.
        word: a pipe: a byte says that the start is over, well or not; its end that the agent is.
    """
    done = bool(select.select([word], [], [], STARTING_SECONDS)[0]) and bool(os.read(word, 1))
    until = time.monotonic() + (0.0 if done else SETTLE_SECONDS)
    while True:
        running = processes_of(container)
        if running:
            _await(running[0])
            # It has run: whatever started it is over.
            until = time.monotonic() + LOOK_SECONDS
        elif time.monotonic() > until:
            return
        time.sleep(LOOK_SECONDS)


def _await(pid: int) -> None:
    with suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            select.select([process], [], [])
        finally:
            os.close(process)


def main(arguments: Sequence[str]) -> int:
    """Run the program; see the module's docstring."""
    container, word, status = arguments[0], int(arguments[1]), int(arguments[2])
    if os.fork() != 0:
        # The agent waits for this process only; the one that stays is adopted by init.
        os._exit(0)
    os.write(status, b"ok")
    os.close(status)
    keep(container, word)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The folder that an instance and the agent share: one socket lies in it, and hardly anything else fits (I10).

An engine that may write into a folder of the host could fill the disk, or plant links. As root the folder is a tmpfs
of its own; without root it cannot be capped, which the backend then says.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from schemas.errors import StartFailed

if TYPE_CHECKING:
    from pathlib import Path

    from schemas.ports import Processes

OPTIONS: Final = "size=64k,nr_inodes=16,mode=0777,nosuid,nodev,noexec"
"""Room for a socket (an inode, no blocks) and little more. Open to the engine's user, whoever that is: the folder
above is closed to everybody but the agent."""

SECONDS: Final = 10


CAP_SYS_ADMIN: Final = 21
"""From linux/capability.h: what mounting takes."""


def can_cap() -> bool:
    """Whether this process may mount: root, unless a container took the right from it."""
    if os.geteuid() != 0:
        return False
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123 - a kernel file
        effective = next((line.split()[1] for line in file if line.startswith("CapEff:")), "0")
    return bool(int(effective, 16) >> CAP_SYS_ADMIN & 1)


def open_for_engine(folder: Path, processes: Processes, *, cap: bool) -> None:
    """Let the engine's user write here; cap size and inodes where wanted. Fine if it was done before.

    Args:
        folder: the instance's.
        processes: runs mount.
        cap: whether it can be capped, see `can_cap`.

    Raises:
        StartFailed: the mount was refused.
    """
    folder.chmod(0o777)
    if not cap or folder.is_mount():
        return
    done = processes.run(["mount", "-t", "tmpfs", "-o", OPTIONS, "reconcile", str(folder)], timeout=SECONDS)
    if done.returncode != 0:
        raise StartFailed(f"{folder} cannot be capped: {done.stderr.decode(errors='replace').strip()}")


def release(folder: Path, processes: Processes) -> None:
    """Undo `open_for_engine`; what lay in the folder is gone. Fine if there is nothing to undo."""
    if folder.is_mount():
        # Lazily: an agent that still looks at the socket must not keep the mount alive.
        processes.run(["umount", "--lazy", str(folder)], timeout=SECONDS)

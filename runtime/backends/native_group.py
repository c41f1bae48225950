"""Control groups (cgroups(7)) of native engines. Standard library only, as `native_confinement.py`."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

CGROUPS: Final = Path("/sys/fs/cgroup")
CGROUP_PERIOD: Final = 100_000
"""Microseconds over which processor time is counted: the kernel's default."""
CONTROLLERS: Final = ("cpu", "memory", "pids")
REMOVAL_SECONDS: Final = 5.0
"""Until the kernel lets a control group go after its last process: milliseconds."""


ABANDONED_SECONDS: Final = 600.0
"""After which a group that holds no process belongs to nobody: an engine joins its own moments after it is made."""


def sweep() -> int:
    """Remove groups that whoever made them could not: it was killed, and its folder is gone. How many there were.

    One that holds a process cannot be removed, whosever it is; one that is missing is made again when it is needed.
    """
    found = set(CGROUPS.glob("reconcile/*/")) | {
        folder for name in CONTROLLERS for folder in (CGROUPS / name / "reconcile").glob("*/")
    }
    count = 0
    for folder in found:
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > ABANDONED_SECONDS:
                folder.rmdir()
                count += 1
    return count


class Group:
    """A control group of version 1 or 2 (cgroups(7)), as far as this machine lets one be made."""

    def __init__(self, name: str) -> None:
        """Describe it; nothing is made yet.

        Args:
            name: unique on the machine.
        """
        self._name = name
        self.unified = (CGROUPS / "cgroup.controllers").exists()

    def folder(self, controller: str) -> Path:
        """Where the limits of a controller are set."""
        return (CGROUPS if self.unified else CGROUPS / controller) / "reconcile" / self._name

    def make(self, *, memory: int, pids: int, cpus: int) -> tuple[str, ...]:
        """Make the group with its limits; what of `cpu`, `memory`, `pids` the machine refuses to enforce.

        Args:
            memory: bytes; swap counts too.
            pids: processes and threads.
            cpus: processors; 0 for no limit.
        """
        refused = []
        for controller, limits in self._limits(memory, pids, cpus).items():
            try:
                self._prepare(controller)
                for name, value, needed in limits:
                    self._write(self.folder(controller) / name, str(value), needed=needed)
            except OSError:
                refused.append(controller)
        return tuple(refused)

    def limits(self, *, memory: int, pids: int, cpus: int, without: Sequence[str]) -> dict[str, tuple[str, str]]:
        """By controller, the limit that was set and the one in force; a limit that cannot be read is left out.

        Args:
            memory: as `make`.
            pids: as `make`.
            cpus: as `make`.
            without: controllers that refused.
        """
        found = {}
        for controller, wanted in self._limits(memory, pids, cpus).items():
            name, value, _ = wanted[0]
            try:
                text = (self.folder(controller) / name).read_text(encoding="ascii").strip()
            except OSError:
                continue
            if controller not in without:
                found[controller] = (str(value), text)
        return found

    def join(self, without: Sequence[str]) -> None:
        """Move this process into the group.

        Args:
            without: controllers that refused.

        Raises:
            OSError: refused.
        """
        for folder in {self.folder(name) for name in CONTROLLERS if name not in without}:
            (folder / "cgroup.procs").write_text("0", encoding="ascii")

    def oom_kills(self) -> int | None:
        """How often the kernel killed in this group for lack of memory; None where it does not say."""
        name = "memory.events" if self.unified else "memory.oom_control"
        try:
            lines = (self.folder("memory") / name).read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)

    def remove(self) -> None:
        """Remove the group; its last process may have ended a moment ago. Fine if it is gone."""
        deadline = time.monotonic() + REMOVAL_SECONDS
        for folder in {self.folder(name) for name in CONTROLLERS}:
            while folder.exists() and time.monotonic() < deadline:
                try:
                    folder.rmdir()
                except OSError:
                    time.sleep(0.01)

    def _limits(self, memory: int, pids: int, cpus: int) -> dict[str, list[tuple[str, object, bool]]]:
        if self.unified:
            processors = f"{cpus * CGROUP_PERIOD} {CGROUP_PERIOD}" if cpus else "max"
            return {
                "cpu": [("cpu.max", processors, True)],
                # A kernel that does not count swap has no file for it.
                "memory": [("memory.max", memory, True), ("memory.swap.max", 0, False)],
                "pids": [("pids.max", pids, True)],
            }
        return {
            "cpu": [("cpu.cfs_quota_us", cpus * CGROUP_PERIOD if cpus else -1, True)],
            "memory": [("memory.limit_in_bytes", memory, True), ("memory.memsw.limit_in_bytes", memory, False)],
            "pids": [("pids.max", pids, True)],
        }

    def _prepare(self, controller: str) -> None:
        parent = self.folder(controller).parent
        parent.mkdir(exist_ok=True)
        if self.unified:
            for folder in (CGROUPS, parent):
                self._write(folder / "cgroup.subtree_control", f"+{controller}", needed=True)
        self.folder(controller).mkdir(exist_ok=True)
        # It is about to be used, however long ago it was made: `sweep` leaves it alone.
        os.utime(self.folder(controller))

    def _write(self, path: Path, text: str, *, needed: bool) -> None:
        if needed or path.exists():
            path.write_text(text, encoding="ascii")

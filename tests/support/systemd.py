"""A machine of a test's own whose first process is systemd: this machine's own files, in a container with an overlay.

`systemd-nspawn` boots it in a second from what is installed here; nothing is built and nothing is downloaded. What it
writes goes to a tmpfs. Of the units of this machine it has none but those that Debian's packages bring by themselves.
The network is this machine's, so that a test's servers on loopback are there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import pytest

from tests.support.front import eventually

if TYPE_CHECKING:
    from collections.abc import Mapping

SECONDS: Final = 120
"""For one command in the machine, and for its end: many times what they take."""

CONTROLLERS: Final = ("cpu", "memory", "pids")
"""Of control groups of version 1, which nspawn shows read-only: a host has them writable."""

OF_CONTAINERS: Final = ("blkio", "cpuacct", "cpuset", "devices", "freezer")
"""What a container engine wants of them besides."""

CGROUPS: Final = Path("/sys/fs/cgroup")

CAPABILITIES: Final = ("CAP_NET_ADMIN", "CAP_SYS_MODULE", "CAP_SYSLOG", "CAP_SYS_RESOURCE")
"""What a host's systemd has beyond what nspawn gives; less where this machine has less."""


class Machine:
    """One machine, from its boot to its end; it may be booted again, with what was written."""

    def __init__(self, folder: Path, shared: Mapping[Path, str], *, containers: bool = False) -> None:
        """Prepare its file system; nothing runs yet.

        Args:
            folder: an empty one for itself.
            shared: folders of this machine that are there as well, by where they are there.
            containers: whether a container engine is to run in it.
        """
        self.name = f"reconcile-{uuid4().hex[:8]}"
        self.root = folder / "root"
        self._folder, self._shared, self._containers = folder, shared, containers
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0
        command = ["mount", "-t", "tmpfs", "-o", "size=2g,mode=0755", "reconcile-test", str(folder)]
        subprocess.run(command, check=True, timeout=SECONDS)
        for name in ("upper", "work", "root"):
            (folder / name).mkdir()
        layers = f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work"
        subprocess.run(
            ["mount", "-t", "overlay", "-o", layers, "reconcile-test", str(self.root)], check=True, timeout=SECONDS
        )
        # What administrators enabled here is none of its business.
        units = self.root / "etc/systemd/system"
        shutil.rmtree(units)
        units.mkdir()
        # Whoever does not end when the machine does is waited for, and so is found.
        (self.root / "etc/systemd/system.conf").write_text("[Manager]\nDefaultTimeoutStopSec=1h\n")
        # /tmp is not emptied at boot: shared folders may lie in it.
        (self.root / "etc/tmpfiles.d/tmp.conf").write_text("")

    def boot(self) -> None:
        """Start it, and return once systemd says that it is up."""
        binds = [f"--bind={_escaped(path)}:{_escaped(there)}" for path, there in self._shared.items()]
        known = Path("/proc/self/status").read_text(encoding="ascii").partition("CapBnd:")[2].split()[0]
        held = [name for name in CAPABILITIES if int(known, 16) >> _number(name) & 1]
        command = [
            *("systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}", f"--machine={self.name}"),
            *("--register=no", "--keep-unit", "--console=pipe", "--link-journal=no", f"--capability={','.join(held)}"),
            *binds,
            *(["--system-call-filter=@keyring bpf"] if self._containers else []),
        ]
        log = (self._folder / "console.log").open("ab")
        # In control groups of its own, below which nspawn makes others by fixed names.
        groups = [str(folder / "cgroup.procs") for folder in self._groups(make=True)]
        script = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit; shift; done; shift; exec "$@"'
        self._process = subprocess.Popen(
            # The machine ends with this process, however that ends.
            ["setpriv", "--pdeathsig", "KILL", "sh", "-c", script, "sh", *groups, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        eventually(self._is_up, "systemd is up, or has ended")
        if self._process.poll() is not None:
            raise OSError(f"systemd-nspawn ends with code {self._process.returncode}: {self.console()}")
        for name in (*CONTROLLERS, *(OF_CONTAINERS if self._containers else ())):
            if (CGROUPS / name / "tasks").exists():
                self.run("mount", "-o", "remount,bind,rw", str(CGROUPS / name))

    def run(self, *command: str, code: int | None = 0) -> str:
        """What a command in the machine prints.

        Args:
            command: the words.
            code: how it has to end; None for any way.
        """
        done = self.attempt(*command)
        assert code is None or done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def attempt(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in the machine, as an administrator's shell would start it."""
        enter = ["nsenter", f"--target={self._init}", "--all", "--", "env", "--chdir=/"]
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        return subprocess.run(
            [*enter, *command], capture_output=True, text=True, timeout=SECONDS, check=False, env=environment
        )

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        lines = self.run("systemctl", "show", unit, *(f"--property={name}" for name in names)).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def console(self) -> str:
        """The end of what it printed."""
        return (self._folder / "console.log").read_text(errors="replace")[-2000:]

    def shut_down(self) -> None:
        """Power off, as a button would: services are stopped, what they left is killed."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                left = self._left()
                with suppress(ProcessLookupError):
                    os.kill(self._init or self._process.pid, signal.SIGKILL)
                self._process.wait(SECONDS)
                pytest.fail(f"the machine does not power off: it waits for\n{left}")
            finally:
                self._process, self._init = None, 0
        self._process, self._init = None, 0

    def take_apart(self) -> None:
        """Everything away."""
        try:
            self.shut_down()
        finally:
            self._clear()

    def _clear(self) -> None:
        for path in (self.root, self._folder):
            subprocess.run(["umount", "--lazy", str(path)], check=False, capture_output=True, timeout=SECONDS)
        for folder in self._groups():
            for below in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
                with suppress(OSError):
                    below.rmdir()
            with suppress(OSError):
                folder.rmdir()

    def _left(self) -> str:
        words = ["ps", "--ppid", str(self._init), "--format", "pid,stat,args"]
        return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False).stdout

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            return True
        # Its children on the way to the machine's own first process come and go.
        listed = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text(encoding="ascii")
        self._init = int(listed.split()[0]) if listed.split() else 0
        said = self.attempt("systemctl", "is-system-running")
        return said.stdout.strip() in ("running", "degraded")

    def _groups(self, *, make: bool = False) -> list[Path]:
        places = (CGROUPS, CGROUPS / "unified", CGROUPS / "systemd")
        found = [place / self.name for place in places if (place / "cgroup.procs").exists()]
        for folder in found if make else ():
            folder.mkdir(exist_ok=True)
        return [folder for folder in found if folder.exists()]


def _escaped(path: Path | str) -> str:
    return str(path).replace("\\", "\\\\").replace(":", "\\:")


def _number(capability: str) -> int:
    """Of linux/capability.h."""
    return {"CAP_NET_ADMIN": 12, "CAP_SYS_MODULE": 16, "CAP_SYS_RESOURCE": 24, "CAP_SYSLOG": 34}[capability]


def machine_or_skip(folder: Path, shared: Mapping[Path, str], *, containers: bool = False) -> Machine:
    """A booted machine; where none can be booted the test is skipped, or fails under `REQUIRE_SYSTEMD=1`."""
    made: Machine | None = None
    missing = [name for name in ("systemd-nspawn", "nsenter", "setpriv") if shutil.which(name) is None]
    why = f"{', '.join(missing)} is not installed (.ci/provision does it)" if missing else ""
    if os.geteuid() != 0:
        why = "systemd as first process of a container needs root"
    if not why:
        try:
            made = Machine(folder, shared, containers=containers)
            made.boot()
        except (OSError, subprocess.CalledProcessError, AssertionError) as error:
            why = f"systemd does not come up as first process of a container here: {error}"
    if made is not None and not why:
        return made
    if made is not None:
        made.take_apart()
    if os.environ.get("REQUIRE_SYSTEMD") == "1":
        pytest.fail(why)
    pytest.skip(why)

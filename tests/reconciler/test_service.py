"""The daemon under a service manager: what it says, when the watchdog is fed, the unit, and ending the runtime."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from reconciler import service
from reconciler.service import Pulse, notify, unit
from tests.support.builders import snapshot
from tests.support.simulated_node import SimulatedNode

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 30.0


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """A service manager's end of the socket, at an abstract address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(PATIENCE)
        listener.bind(f"\0reconcile-test-{os.getpid()}")
        yield listener


@pytest.mark.parametrize("where", ["abstract", "path"])
def test_a_service_manager_is_told(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One datagram with all assignments, to either kind of address (sd_notify(3))."""
    address = f"@reconcile-{os.getpid()}" if where == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(PATIENCE)
        listener.bind(address.replace("@", "\0"))
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1", "STATUS=well")
        assert listener.recv(1000) == b"READY=1\nSTATUS=well"


def test_a_service_manager_is_told_of_a_reload(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """And when, on its own clock: it waits for a READY=1 that comes after (sd_notify(3))."""
    monkeypatch.setenv("NOTIFY_SOCKET", f"@reconcile-test-{os.getpid()}")
    before = time.monotonic_ns() // 1000
    service.reloading()
    first, second = manager.recv(1000).decode().splitlines()
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "vsock:2:1"])
def test_where_there_is_no_manager_nothing_is_said(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing fails."""
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")


def test_the_watchdog_is_fed_while_the_loop_lives(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it rests, and while something moves; a pass in which nothing moves for too long starves it."""
    monkeypatch.setenv("NOTIFY_SOCKET", f"@reconcile-test-{os.getpid()}")
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    pulse = Pulse()
    pulse.rest()
    with pulse.watched():
        for _ in range(3):
            assert manager.recv(100) == b"WATCHDOG=1"
    monkeypatch.setattr(service, "SILENCE_SECONDS", 0.0)
    assert pulse.alive(), "a rest is no silence"
    pulse.beat()
    assert not pulse.alive()
    monkeypatch.setattr(service, "SILENCE_SECONDS", 3600.0)
    assert pulse.alive()


def test_a_watchdog_of_somebody_else_is_not_fed(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is inherited; the process that is meant is named in it (sd_watchdog_enabled(3))."""
    monkeypatch.setenv("NOTIFY_SOCKET", f"@reconcile-test-{os.getpid()}")
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    with Pulse().watched():
        notify("STATUS=end")
    assert manager.recv(100) == b"STATUS=end"


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """Its own checker finds nothing to say; odd paths are quoted."""
    program, config = Path(sys.executable), tmp_path / "a b%c.yaml"
    text = unit(program, config, stop_runtime=True)
    assert "@" not in text.replace("@system-service @mount", "")
    assert f'--config "{tmp_path}/a b%%c.yaml" --watch --stop-runtime' in text
    assert "KillMode=process" in text, "a native runtime outlives the agent"
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    file = tmp_path / "reconcile.service"
    file.write_text(text)
    done = subprocess.run([analyze, "verify", "--man=no", str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "reconcile.service" in line]) == (0, [])


CLOSED = (
    "NoNewPrivileges=",
    "RestrictSUIDSGID=",
    "RestrictRealtime=",
    "LockPersonality=",
    *(f"RestrictNamespaces=~{name}" for name in ("cgroup", "pid", "uts")),
    "SystemCallArchitectures=",
    "RestrictAddressFamilies=~AF_PACKET",
    *(f"SystemCallFilter=~@{name}" for name in ("clock", "cpu-emulation", "debug", "module", "obsolete", "raw-io")),
    *(f"SystemCallFilter=~@{name}" for name in ("reboot", "swap")),
    *(f"CapabilityBoundingSet=~CAP_{name}" for name in ("SYS_MODULE", "SYS_RAWIO", "SYS_TIME", "SYS_BOOT", "SYSLOG")),
    *(f"CapabilityBoundingSet=~CAP_{name}" for name in ("NET_(BIND_SERVICE", "MKNOD", "BPF", "MAC_*", "SYS_CHROOT")),
)
"""What nothing of a node needs, however it runs its engines; as systemd's own checker calls it."""
MOST_EXPOSED = 6.3
"""Of 10, as systemd 252 counts: 6.1. What is left open is what capping sockets and confining engines take, and mounts:
see tests/demo/test_systemd.py for what becomes of a unit that has its own."""


def test_the_unit_is_as_closed_as_is_said(tmp_path: Path) -> None:
    """By the judgement of `systemd-analyze security`, directive by directive, without a systemd that runs."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    file = tmp_path / "reconcile.service"
    file.write_text(unit(Path(sys.executable), tmp_path / "n.yaml", stop_runtime=False))
    base = [analyze, "security", "--offline=true", "--no-pager"]
    told = subprocess.run([*base, "--json=short", str(file)], capture_output=True, text=True, check=False)
    if "nrecognized option" in told.stderr:
        pytest.skip(f"this systemd-analyze judges no file: {told.stderr.strip()}")
    found = {item["name"]: item["set"] for item in json.loads(told.stdout) if item["set"] is not None}
    names = {name: [known for known in found if name in known] for name in CLOSED}
    assert [name for name, known in names.items() if not known] == [], "systemd knows each"
    assert [name for name, known in names.items() if not all(found[item] for item in known)] == []
    threshold = f"--threshold={MOST_EXPOSED * 10:.0f}"
    done = subprocess.run([*base, threshold, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_the_runtime_ends_where_that_is_asked_for(tmp_path: Path) -> None:
    """What this node created is stopped, on record; without being asked, a daemon that ends leaves it serving."""
    node = SimulatedNode(tmp_path)
    node.run(snapshot())
    assert node.serving() == ["m:v1"]
    assert node.reconciler.stop_runtime() == []
    assert node.serving() == []
    assert node.journal.history(limit=1)[0].outcome == "applied"
    assert node.reconciler.stop_runtime() == [], "there is nothing left to stop"
    node.run()
    assert node.serving() == ["m:v1"], "the next daemon serves again"

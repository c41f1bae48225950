"""What an agent that is a container itself may rely on, and that it says so where it cannot."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.backends.containment import HOST_PIDS, SAME_PATH, containment, own_container

ID = "0123456789abcdef" * 4
STATE = Path("/var/lib/reconcile")

OUTSIDE = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c"]
"""A program in a pid namespace of its own, as in a container without `--pid host`."""


def described(*mounts: dict[str, Any], pids: str = "host") -> dict[str, Any]:
    """An engine's word about the agent's container."""
    return {"HostConfig": {"PidMode": pids}, "Mounts": list(mounts)}


def bind(source: str, target: str, propagation: str = "rprivate") -> dict[str, Any]:
    """One mount of it."""
    return {"Type": "bind", "Source": source, "Destination": target, "Propagation": propagation}


@pytest.mark.parametrize(
    ("root", "found"),
    [
        (f"/var/lib/docker/containers/{ID}/hostname", ID),
        (f"/docker/containers/{ID}/resolv.conf", ID),  # a file system of its own
        (f"/containers/storage/overlay-containers/{ID}/userdata/hosts", ID),
        (f"/var/lib/docker/containers/{ID}/mounts/shm", ""),  # what a host with engines has itself
        ("/", ""),
    ],
)
def test_its_own_container_is_read_off_its_mounts(root: str, found: str) -> None:
    """Docker's and Podman's own files in /etc name the container; a host that runs containers is none."""
    lines = f"27 1 254:0 / / rw - ext4 /dev/vda rw\n99 27 254:0 {root} /etc/x rw,relatime - ext4 /dev/vda rw\n"
    assert own_container(lines) == found


def test_the_state_directory_under_its_own_path_is_sound() -> None:
    """Below another mount, too; what is mounted there is shared only where the engine says so."""
    shared = containment(described(bind("/var/lib", "/var/lib", "rshared")))
    assert shared.trouble(STATE / "run") is None
    assert shared.shares(STATE / "run")
    private = containment(described(bind("/var/lib", "/var/lib", "rshared"), bind(str(STATE), str(STATE))))
    assert private.trouble(STATE) is None
    assert not private.shares(STATE), "the nearer mount counts"


@pytest.mark.parametrize(
    ("detail", "mend"),
    [
        (described(bind(str(STATE), str(STATE)), pids=""), HOST_PIDS),
        (described(bind(str(STATE), str(STATE)), pids="container:other"), HOST_PIDS),
        (described(bind("/srv/node", str(STATE))), SAME_PATH),
        (described({"Type": "volume", "Source": str(STATE), "Destination": str(STATE)}), SAME_PATH),
        (described(), SAME_PATH),
    ],
)
def test_what_cannot_work_is_refused(detail: dict[str, Any], mend: str) -> None:
    """Each with its remedy."""
    trouble = containment(detail).trouble(STATE)
    assert trouble is not None
    assert trouble[1] == mend


def ask_from_outside(code: str, *arguments: str) -> str:
    """What a program in another pid namespace prints."""
    done = subprocess.run([*OUTSIDE, code, *arguments], capture_output=True, text=True, timeout=120, check=False)
    if "unshare:" in done.stderr:
        pytest.skip(f"no pid namespace can be made here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_listener_outside_of_the_pid_namespace_is_refused_by_name(tmp_path: Path) -> None:
    """The kernel says process 0 of it: the refusal says what is missing, and not that a stranger listens."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{os.open(tmp_path, os.O_PATH)}/x")
        listener.listen()
        code = (
            "import sys; from pathlib import Path; from runtime.connection import UnixConnection\n"
            "try: UnixConnection(Path(sys.argv[1]), is_peer=lambda pid: False).peer(timeout=60)\n"
            "except Exception as error: print(type(error).__name__, error, error.hint)\n"
        )
        said = ask_from_outside(code, str(tmp_path / "x"))
    assert said.startswith("EngineUnreachable cannot tell who listens on ")
    assert said.endswith("--pid host")


def test_a_lock_held_outside_of_the_pid_namespace_is_not_taken_for_free(tmp_path: Path) -> None:
    """Whoever holds it lives: an agent that took it for dead would clear a living front's folder away."""
    code = (
        "import sys; from pathlib import Path; from runtime.backends.native_processes import lock_holder\n"
        "try: print(lock_holder(Path(sys.argv[1])))\n"
        "except OSError as error: print(error.strerror)\n"
    )
    lock = tmp_path / "lock"
    with lock.open("w") as file:
        assert ask_from_outside(code, str(lock)) == "0"
        fcntl.lockf(file, fcntl.LOCK_EX)
        assert "--pid host" in ask_from_outside(code, str(lock))

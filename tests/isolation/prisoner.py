"""Takes an engine's place, tries to break out, and prints what came of it. Standard library only.

`prisoner.py TRIALS` where TRIALS is a JSON object: `port` of a listener on the host's loopback, `engines` (paths of
container engines' sockets), `outside` (a folder of the host that is none of its mounts), `secret` (a file of the host
that only the agent may read), `model`, `folder` (the socket's), `memory`, `shm`, `pids`, `cpus` (its limits). It prints
one line, `FOUND {restriction: {trial: what came of it, empty where it was refused}}`.

Every trial undoes what it achieved, and goes just beyond a limit: it is also run where nothing is enforced.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

BUSY_SECONDS = 1.0
ADDRESSES = (("192.0.2.1", 9), ("2001:db8::1", 9), ("169.254.169.254", 80))
"""Documentation networks (RFC 5737, RFC 3849), and where clouds keep their instances' credentials."""


def network(given: dict[str, Any]) -> dict[str, str]:
    """A way to anywhere: any address, the host's loopback, the host's abstract sockets, a name."""
    found = {}
    for address, port in ADDRESSES:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            # Connecting a datagram socket sends nothing: it asks whether there is a way to the address.
            found[f"reach {address}"] = attempt(lambda: probe.connect((address, port)))  # noqa: B023 - used at once
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as stream:
        stream.settimeout(5)
        found["reach the host's loopback"] = attempt(lambda: stream.connect(("127.0.0.1", given["port"])))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
        found["reach an abstract socket of the host"] = attempt(lambda: stream.connect("\0" + given["abstract"]))
    found["open a raw socket"] = attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close())
    resolved = attempt(lambda: socket.getaddrinfo("example.org", 80))
    found["resolve a name"] = resolved
    return found


def filesystem(given: dict[str, Any]) -> dict[str, str]:
    """A place to write beyond the mounts."""
    places = ["/", "/usr", "/etc", "/opt", "/home", "/root", "/dev", "/sys/fs/cgroup", "/proc/sys/kernel"]
    found = {}
    for place in (*places, given["outside"], given["model"]):
        path = os.path.join(place, f"escaped-{os.getpid()}")  # noqa: PTH118 - text is what is tried
        found[f"write to {'a folder of the host' if place == given['outside'] else place}"] = attempt(
            lambda: (Path(path).write_text("here"), os.unlink(path))  # noqa: B023, PTH108 - used at once
        )
    found["change the model"] = attempt(lambda: os.chmod(given["model"], 0o777))  # noqa: PTH101
    return found


def engine_socket(given: dict[str, Any]) -> dict[str, str]:
    """The socket of a container engine, which is root on the host."""
    found = {}
    for path in given["engines"]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            found[f"connect to {path}"] = attempt(lambda: stream.connect(path))  # noqa: B023 - used at once
    return found


def user(given: dict[str, Any]) -> dict[str, str]:
    """The agent's user, and what only that one may do."""
    return {
        "be the agent's user": attempt(lambda: fail_unless(os.getuid() == given["uid"])),
        "read what only the agent may": attempt(lambda: Path(given["secret"]).read_text()),
        "signal the agent": attempt(lambda: os.kill(given["agent"], 0)),
    }


def capabilities(_: dict[str, Any]) -> dict[str, str]:
    """A privilege, or a way to gain one."""
    libc = ctypes.CDLL(None, use_errno=True)
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    held = [name for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(status[name], 16)]
    return {
        "hold a capability": ", ".join(held),
        "gain one by executing": "" if status["NoNewPrivs"].strip() == "1" else "no_new_privs is not set",
        "mount": attempt(lambda: call(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))),
        "chroot": attempt(lambda: os.chroot("/")),
        "become another user": attempt(lambda: os.setuid(os.getuid() + 1)),
        "set the clock": attempt(lambda: time.clock_settime(time.CLOCK_REALTIME, time.time())),
    }


def pids(given: dict[str, Any]) -> dict[str, str]:
    """More processes than the limit."""
    children, refused = [], False
    while len(children) < given["pids"] + 8 and not refused:
        try:
            child = os.fork()
        except OSError:
            refused = True
            continue
        if child == 0:
            signal.pause()
        children.append(child)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return {"fork past the limit": "" if refused else f"{len(children)} children"}


def memory(given: dict[str, Any]) -> dict[str, str]:
    """More memory than the limit, in a child: what is over the limit is killed."""
    child = os.fork()
    if child == 0:
        # So that the kernel's choice falls on this one.
        Path("/proc/self/oom_score_adj").write_text("1000") if os.access("/proc/self/oom_score_adj", os.W_OK) else None
        try:
            taken = bytearray(given["memory"] * 3 // 2)
            taken[::4096] = b"1" * len(taken[::4096])
        except MemoryError:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"allocate past the limit": "all of it was given" if status == 0 else ""}


def shm(given: dict[str, Any]) -> dict[str, str]:
    """More shared memory than the limit."""
    return {"fill /dev/shm past the limit": filled(Path("/dev/shm", f"full-{os.getpid()}"), given["shm"] + 2**20)}


def socket_size(given: dict[str, Any]) -> dict[str, str]:
    """More than a socket in the folder that it shares with the agent."""
    folder = Path(given["folder"])
    made = []
    try:
        for number in range(64):
            path = folder / f"file-{number}"
            path.touch()
            made.append(path)
        many = "64 files"
    except OSError:
        many = ""
    for path in made:
        path.unlink()
    return {"fill the socket's folder past its size": filled(folder / "full", 2**20), "past its inodes": many}


def cpu(given: dict[str, Any]) -> dict[str, str]:
    """More processors than the limit. Sees nothing on a machine that has no more, or none to spare."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    children = []
    for _ in range(given["cpus"] + 1):
        child = os.fork()
        if child == 0:
            while time.monotonic() < begun + BUSY_SECONDS:
                pass
            os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begun
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # A period's worth may be taken at once at either end.
    return {"compute past the limit": f"{used / wall:.1f} processors" if used > (wall + 0.2) * given["cpus"] else ""}


TRIALS = {
    "network": network,
    "filesystem": filesystem,
    "engine-socket": engine_socket,
    "user": user,
    "capabilities": capabilities,
    "pids": pids,
    "shm": shm,
    "socket-size": socket_size,
    "cpu": cpu,
    "memory": memory,
}
"""By restriction; the last is the one that may cost it its life."""


def attempt(action: Any) -> str:
    """What was achieved; empty where it was refused."""
    try:
        action()
    except (OSError, RuntimeError):
        return ""
    return "done"


def fail_unless(condition: bool) -> None:
    """Refuse."""
    if not condition:
        raise OSError


def call(result: int) -> None:
    """A system call's result as an error."""
    fail_unless(result == 0)


def filled(path: Path, size: int) -> str:
    """How much could be written."""
    try:
        with path.open("wb") as file:
            written = sum(file.write(b"x" * 4096) for _ in range(0, size, 4096))
            file.flush()
    except OSError:
        return ""
    finally:
        path.unlink(missing_ok=True)
    return f"{written} bytes"


def main() -> None:
    """Try everything."""
    given = json.loads(sys.argv[1])
    found = {}
    for restriction, trial in TRIALS.items():
        try:
            found[restriction] = trial(given)
        except Exception as error:  # noqa: BLE001 - a trial that cannot be made is told, and fails the test
            found[restriction] = {"the trial itself": f"{type(error).__name__}: {error}"}
    print("FOUND", json.dumps(found), flush=True)  # noqa: T201 - what backends capture


if __name__ == "__main__":
    main()

"""Stands over one native engine, so that an agent's death neither ends it nor loses its output or its exit code.

Standalone on purpose (standard library and its two neighbours only, started as `python -I -S native_shim.py SPEC
STATUS-FD`): it costs little and depends on nothing that an agent's upgrade replaces. It detaches, holds a lock on the
instance's folder while it lives, locks the engine in, writes what the engine prints into size-capped files, and says in
`exit.json` how the engine ended, once no process of it is left. When it dies itself, the kernel kills the engine.

Signals: SIGTERM and SIGINT are passed on to the engine's process group; SIGUSR1 kills all that belongs to it.

Files in the instance's folder: `spec.json` (read), `lock`, `state.json` (written when the engine runs), `exit.json`.
`native_shim.py --probe FOLDER` prints as JSON how far this host lets an engine be locked in.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

if not __package__:
    # Started as a program, by its path. Behind the standard library: nothing there can stand in for a part of it.
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from runtime.backends.native_confinement import (
    drop_privileges,
    enter_root,
    open_socket_folder,
    prctl,
    probe,
    unmount,
    unshare,
)
from runtime.backends.native_group import Group

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36
"""Options of prctl(2), from linux/prctl.h."""

CHUNK: Final = 2**16
LOG_FILES: Final = 2
"""The file that grows and the one before it; together they keep at most the limit."""
CONTROLLERS: Final = 3
"""Of control groups: cpu, memory, pids."""
MOST_FILES: Final = 65536
"""Open files of an engine: an mmap per shard and a socket per request are far below."""

# --- the engine's process -----------------------------------------------------------------------------------------


def start_engine(spec: dict[str, Any], output: int, group: Group) -> int:
    """Start the engine locked in.

    Args:
        spec: the instance.
        output: descriptor for what it prints.
        group: its control group.

    Returns:
        Its process id, which is the id of its session and process group too.

    Raises:
        OSError: it could not be started; the message says what failed.
    """
    read, write = os.pipe()
    shim = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            _become_engine(spec, output, write, shim, group)
        except BaseException as error:  # noqa: BLE001 - a forked child must not return
            os.write(write, f"{type(error).__name__}: {error}".encode()[:4096])
        os._exit(127)
    os.close(write)
    message = b"".join(iter(lambda: os.read(read, 4096), b""))
    os.close(read)
    if message:
        os.waitpid(child, 0)
        raise OSError(message.decode(errors="replace"))
    return child


def _become_engine(spec: dict[str, Any], output: int, errors: int, shim: int, group: Group) -> NoReturn:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    group.join(spec["refused"])
    unshare(spec["namespaces"], mounts=bool(spec["root"]))
    if spec["root"]:
        enter_root(
            spec["root"],
            read=spec["read"],
            write=(spec["folder"],),
            gpus=spec["gpus"],
            shm=spec["shm"],
            tmp=spec["tmp"],
        )
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = MOST_FILES if files == resource.RLIM_INFINITY else min(files, MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if spec["cpus"]:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: spec["cpus"]])
    if spec["user"] or spec["namespaces"] == "user":
        # Counted per user, and in a user namespace per that (Linux 5.14): of root's own it would not hold.
        resource.setrlimit(resource.RLIMIT_NPROC, (spec["pids"], spec["pids"]))
    drop_privileges(spec["user"])
    # After the last change of credentials, which would clear it (PR_SET_PDEATHSIG in prctl(2)).
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != shim:
        raise ProcessLookupError("the supervisor died")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, errors)
    os.closerange(errors + 1, files)
    os.umask(0o077)
    os.chdir(spec["folder"])
    os.execve(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606 - no shell is the point


# --- its output ---------------------------------------------------------------------------------------------------


class Log:
    """The end of what the engine printed, in at most `limit` bytes of files."""

    def __init__(self, folder: str, limit: int) -> None:
        self._path = Path(folder, "output.log")
        self._share = max(limit // LOG_FILES, 1)
        self._descriptor = -1
        self._size = 0

    def write(self, data: bytes) -> None:
        """Append. What cannot be written is dropped: a full disk must not stop an engine that serves (I6)."""
        while data:
            part, data = data[: self._share], data[self._share :]
            try:
                self._append(part)
            except OSError:
                self.close()

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, part: bytes) -> None:
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self._path, flags, 0o600)
            self._size = os.fstat(self._descriptor).st_size
        if self._size + len(part) > self._share:
            self.close()
            self._path.replace(self._path.with_suffix(".log.1"))
            self._append(part)
            return
        self._size += os.write(self._descriptor, part)


# --- supervising --------------------------------------------------------------------------------------------------


class Supervisor:
    """One engine, from its start until no process of it is left."""

    def __init__(self, engine: int, output: int, signals: Signals, log: Log) -> None:
        self._engine = engine
        self._output = output
        self._signals = signals
        self._log = log
        self._status: int | None = None

    def run(self) -> int:
        """Serve until the end; the engine's wait status."""
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        poll.register(self._signals.wakeup, select.POLLIN)
        while self._status is None:
            for descriptor, events in poll.poll():
                if descriptor == self._output and not self._copy() and events & select.POLLHUP:
                    poll.unregister(self._output)
            for number in self._signals.take():
                # Not waited for yet, so its id still names its group.
                os.killpg(self._engine, number)
            self._reap()
        self._end_descendants()
        while self._copy():
            pass
        self._log.close()
        return self._status

    def _copy(self) -> bool:
        """Move one chunk of output; False when there is none now."""
        try:
            data = os.read(self._output, CHUNK)
        except BlockingIOError:
            return False
        self._log.write(data)
        return bool(data)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._engine:
                self._status = status

    def _end_descendants(self) -> None:
        """Kill what is left. Orphans of what is killed become children of this process, and are found next time."""
        while left := children():
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            select.select([self._signals.wakeup], [], [], 1.0)
            self._signals.take()
            self._reap()


class Signals:
    """Signals that were received, to be looked at when there is time."""

    def __init__(self) -> None:
        self.wakeup, written = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        """Readable when a signal has come."""
        self._requests: list[signal.Signals] = []
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number, passed_on in (
            (signal.SIGTERM, signal.SIGTERM),
            (signal.SIGINT, signal.SIGTERM),
            (signal.SIGUSR1, signal.SIGKILL),
        ):
            signal.signal(number, lambda *_, wanted=passed_on: self._requests.append(wanted))

    def take(self) -> list[signal.Signals]:
        """What the engine is to be sent, once; the wake-up is over."""
        with suppress(BlockingIOError):
            os.read(self.wakeup, CHUNK)
        taken = []
        while self._requests:
            taken.append(self._requests.pop(0))
        return taken


def children() -> list[int]:
    """Ids of this process's children that have not been waited for."""
    try:
        return [int(word) for word in Path("/proc/thread-self/children").read_text(encoding="ascii").split()]
    except FileNotFoundError:
        # A kernel without CONFIG_PROC_CHILDREN.
        return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if parent(entry) == os.getpid()]


def parent(process: Path) -> int:
    """Id of a process's parent, 0 when it is gone (field 4 of proc_pid_stat(5))."""
    try:
        return int((process / "stat").read_bytes().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def start_ticks(process: int) -> int:
    """When a process was started, in clock ticks since boot (field 22 of proc_pid_stat(5))."""
    return int(Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[19])


def supervise(path: Path, report: Callable[[str], None]) -> int:
    """Run one instance.

    Args:
        path: its `spec.json`.
        report: told once whether it runs: "" or what went wrong.

    Returns:
        The exit code of this program.
    """
    folder = path.parent
    spec = json.loads(path.read_bytes())
    # A lock of fcntl(2) names its holder to whoever asks, is not inherited by the engine, and ends with this process.
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        report("")  # it runs already
        return 0
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signals = Signals()
    for name in ("state.json", "exit.json"):
        (folder / name).unlink(missing_ok=True)
    output, printed = os.pipe2(os.O_CLOEXEC)
    group = Group(spec["group"])
    if len(spec["refused"]) < CONTROLLERS:
        group.make(memory=spec["memory"], pids=spec["pids"], cpus=spec["cpus"])
    open_socket_folder(spec["folder"], capped=spec["capped"], user=spec["user"])
    kills = oom_kills(group)
    try:
        engine = start_engine(spec, printed, group)
    except OSError:
        _release(spec, group)
        raise
    os.close(printed)
    fcntl.fcntl(output, fcntl.F_SETFL, os.O_NONBLOCK)
    state = {"boot": boot_id(), "engine": engine, "engineTicks": start_ticks(engine), "startedAt": time.time()}
    publish(folder / "state.json", state)
    report("")
    status = Supervisor(engine, output, signals, Log(spec["logFolder"], spec["logLimit"])).run()
    code = os.waitstatus_to_exitcode(status)
    end = {
        "code": code if code >= 0 else None,
        "signal": -code if code < 0 else None,
        "outOfMemory": code == -signal.SIGKILL and oom_kills(group) > kills,
    }
    _release(spec, group)
    publish(folder / "exit.json", end)
    return 0


def publish(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file so that a reader sees all of it or nothing, even after power loss."""
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.fsync(descriptor)
    os.close(descriptor)


def boot_id() -> str:
    """Identifies this boot of the machine: process ids mean nothing in another."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _release(spec: dict[str, Any], group: Group) -> None:
    """Give back what was made for an instance that has ended."""
    group.remove()
    if spec["capped"]:
        unmount(spec["folder"])


def oom_kills(group: Group) -> int:
    """How often the kernel killed for lack of memory: in the group, or else since boot (`oom_kill` in /proc/vmstat)."""
    counted = group.oom_kills()
    if counted is not None:
        return counted
    lines = Path("/proc/vmstat").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def main(arguments: Sequence[str]) -> int:
    """Run the program; see the module's docstring."""
    if arguments[0] == "--probe":
        sys.stdout.write(json.dumps(probe(arguments[1])))
        return 0
    path, pipes = Path(arguments[0]), [int(arguments[1])]
    if os.fork() != 0:
        # The agent waits for this process only; the one that stays is adopted by init, and no zombie is left.
        os._exit(0)

    def report(message: str) -> None:
        while pipes:
            # Where the agent died meanwhile, the next one looks at the folder.
            with suppress(BrokenPipeError):
                os.write(pipes[0], (message or "ok").encode()[:4096])
            os.close(pipes.pop())

    try:
        return supervise(path, report)
    except (OSError, ValueError, KeyError) as error:
        report(f"{type(error).__name__}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Processes of this host that belong to native instances: found by marks in their environment, signalled safely.

A process id can be used again by a stranger at any moment. So a process is signalled through a descriptor of it
(pidfd_open(2)), and only after it was looked at again with the descriptor in hand.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.backends.native_confinement import ENGINE_IDS
from schemas.digests import digest_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

OWNER: Final = "RECONCILE_OWNER"
INSTANCE: Final = "RECONCILE_INSTANCE"
INTENT: Final = "RECONCILE_INTENT"
SPEC: Final = "RECONCILE_SPEC"
"""Environment variables that mark a process: whose node, which instance, which intent, which spec digest."""

_ENVIRONMENT: Final = 4096
"""Bytes of a process's environment that are read: the marks are its first four variables."""

_LOCK: Final = struct.Struct("hhqqi4x")
"""`struct flock` of fcntl(2) on 64-bit Linux: type, whence, start, length, pid, padding."""

INIT: Final = 1
"""The first process of a pid namespace."""

MOST_ANCESTORS: Final = 64
"""Generations between a supervisor and a process: engines start workers, and those little more."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A live process with marks."""

    pid: int
    instance: str
    intent: str
    spec: str


def marked(owner: str) -> list[Marked]:
    """Every process of this node that carries an owner's marks, by pid. Costs about 5 us per process of the host."""
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208 - a hundred thousand names at worst, often
        if name.isdigit():
            process = _marks(int(name), owner)
            if process is not None:
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def engine_user(owner: str, instance: str) -> int:
    """The user and group id that an instance's engine has where it is given one of its own: nobody else's."""
    return ENGINE_IDS + int(digest_text(f"{owner}|{instance}")[-6:], 16)


def _marks(pid: int, owner: str) -> Marked | None:
    try:
        descriptor = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        user = os.fstat(descriptor).st_uid
        content = os.read(descriptor, _ENVIRONMENT)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    if OWNER.encode() not in content:
        return None
    lines = (line.partition("=") for line in content.decode(errors="replace").split("\0"))
    values = {name: value for name, _, value in lines}
    instance = values.get(INSTANCE, "")
    # The name becomes a path: what a process says of itself must not lead anywhere else.
    if values.get(OWNER) != owner or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", instance):
        return None
    # Another user's process that pretends to be ours is none of ours.
    if user not in (os.geteuid(), engine_user(owner, instance)):
        return None
    return Marked(pid, instance, values.get(INTENT, ""), values.get(SPEC, ""))


@dataclass(frozen=True, slots=True)
class _Stat:
    parent: int
    session: int
    ticks: int


def _stat(pid: int) -> _Stat | None:
    """Fields 4, 6 and 22 of proc_pid_stat(5); None when there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    # A zombie holds nothing and runs nothing.
    return None if fields[0] in (b"Z", b"X") else _Stat(int(fields[1]), int(fields[3]), int(fields[19]))


def lives(pid: int) -> bool:
    """Whether there is a process of this id that is more than the memory of one (a zombie)."""
    return _stat(pid) is not None


def session_members(leader: int, ticks: int) -> list[int]:
    """Processes of a session.

    Args:
        leader: the process id of its leader, dead or alive.
        ticks: when that leader was started, clock ticks since boot: a later process under the same id leads another.
    """
    # Session 0 is that of every process whose leader lives outside this pid namespace, 1 that of its init: in a
    # container they are half of the machine, and no supervisor of ours ever led them.
    if leader <= INIT:
        return []
    alive = _stat(leader)
    if alive is not None and alive.ticks != ticks:
        return []
    # While members live, the kernel gives the leader's id to no other process.
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in pids if (seen := _stat(pid)) is not None and seen.session == leader]


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether a process is `ancestor` or came from it; a supervisor keeps its orphans (PR_SET_CHILD_SUBREAPER)."""
    for _ in range(MOST_ANCESTORS):
        if pid == ancestor:
            return True
        seen = _stat(pid)
        if seen is None or seen.parent == 0:
            return False
        pid = seen.parent
    return False


def lock_holder(path: Path) -> int:
    """The process that holds the lock of fcntl(2) on a file, 0 for none. Takes no lock itself.

    Raises:
        OSError: the file cannot be opened for another reason than its absence, or a process that this one's pid
            namespace does not have holds the lock: it lives, and nothing here could name it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return 0
    try:
        question = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _LOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, question))
    finally:
        os.close(descriptor)
    if kind == fcntl.F_UNLCK:
        return 0
    if pid <= 0:
        raise OSError(
            errno.ESRCH, "it is locked from outside of this agent's pid namespace (see --pid host)", str(path)
        )
    return int(pid)


@contextmanager
def held(pid: int, still: Callable[[], bool]) -> Iterator[int | None]:
    """A descriptor of a process, None if it is gone or no longer what it was.

    Args:
        pid: its id.
        still: looks again whether the id belongs to the process that is meant.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield descriptor if still() else None
    finally:
        os.close(descriptor)


def send(descriptor: int, number: signal.Signals) -> None:
    """Signal a process; fine if it is gone."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, number)


def ended_within(descriptor: int, seconds: float) -> bool:
    """Wait until a process has ended, at most so long."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(max(seconds, 0) * 1000))


def launch(
    argv: Callable[[int], tuple[str, ...]],
    *,
    env: Mapping[str, str],
    log: Path,
    seconds: float,
    keep: Sequence[int] = (),
) -> str:
    """Start a program that detaches itself, and wait for its word.

    Args:
        argv: its command line, made with the descriptor on which it reports; that one ends, and leaves it to init.
        env: its complete environment.
        log: takes what it prints.
        seconds: bound of each of the two steps.
        keep: descriptors that it inherits, under the same numbers.

    Returns:
        What it reports; empty when it ended without.

    Raises:
        TimeoutError: it did not detach or report in time.
        OSError: it could not be started.
    """
    heard, told = os.pipe()
    try:
        with log.open("wb") as output:
            launched = subprocess.Popen(
                argv(told),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=env,
                cwd="/",
                start_new_session=True,
                pass_fds=(told, *keep),
            )
        os.close(told)
        told = -1
        launched.wait(seconds)
        if not ended_within(heard, seconds):
            raise TimeoutError(f"it did not report within {seconds:g} s")
        return os.read(heard, 4096).decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"it did not detach within {seconds:g} s") from error
    finally:
        os.close(heard)
        if told >= 0:
            os.close(told)

"""One GPU, one node: a lock per GPU for the whole machine, held by what uses it ([ADR 0031](docs/adr)).

Nodes of several networks can share a machine: they know nothing of each other, may run as different users, in
containers or beside them, through different engines. What they share is a folder with a file per GPU. Two ranges of
that file are locked, both by open file description (F_OFD_SETLK in fcntl(2)), which is what a child inherits:

- byte 0, by whoever is claiming the GPU just now, for milliseconds: what is read and written below it is of one mind;
- byte 1, shared by everything of the one node that uses the GPU. The agent takes it and hands it on before an engine
  runs: to the supervisor of a native engine, or to a keeper that watches over a container. So it outlives the agent,
  and ends with the engine, however either of them dies.

The file's text says who that is: for refusals, and because a keeper can die while its container runs on (an agent in a
container, and its keepers with it). So a GPU is free when byte 1 is, and no container that the text names still runs.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import struct
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from runtime.backends.gpu_keeper import processes_of
from schemas.errors import GpuInUse, GpuNotLockable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FOLDER: Final = Path("/run/lock/reconcile")
"""Below what FHS 3.0 (5.9) has for locks; on a file system in memory, so that nothing in it outlives a boot."""

FOLDER_MODE: Final = 0o1777
"""Any user may run a node. Whoever could spoil a lock that way can open /dev/nvidia* as well, which is open to all."""

CLAIM_SECONDS: Final = 5.0
"""For another node's claim to end: it takes milliseconds."""

_LOCK: Final = struct.Struct("hhqqi4x")
"""`struct flock` of fcntl(2) on 64-bit Linux: type, whence, start, length, pid, padding."""
_CLAIMING, _USING = 0, 1
_LIMIT: Final = 8192
"""Bytes of a file that are read."""
_UUID: Final = re.compile(r"[A-Za-z0-9-]{1,96}")
_WORD: Final = re.compile(r"[A-Za-z0-9-]{1,64}")
_CONTAINER: Final = re.compile(r"[0-9a-f]{64}")


class GpuLocks:
    """The locks of a machine's GPUs, as one node sees them. Keeps nothing in memory."""

    def __init__(self, folder: Path, *, network: str, node_id: str) -> None:
        """Nothing is touched yet.

        Args:
            folder: the machine's, the same for every node on it.
            network: the network of this node.
            node_id: this node.
        """
        self._folder = folder
        self._me = {"network": network, "node": node_id}

    def holder(self, uuid: str) -> str:
        """Which other node has a GPU, for people; empty for none, or for this one. Locks nothing (I9).

        What cannot be looked at counts as taken.
        """
        if not _UUID.fullmatch(uuid):
            return f"nobody who could be told: {uuid!r} is no name of a GPU"
        try:
            descriptor = os.open(self._path(uuid), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"somebody whose lock {self._path(uuid)} cannot be looked at ({error.strerror})"
        try:
            return self._other(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def claimed(self, uuids: Sequence[str], instance: str, *, container: str = "") -> Iterator[tuple[int, ...]]:
        """Take GPUs for an instance that is about to be started; at the end they are its heirs' alone.

        Args:
            uuids: of the GPUs.
            instance: its name.
            container: its id, where it is a container.

        Yields:
            Descriptors that hold the locks.

        Raises:
            GpuInUse: another node has one of them.
            GpuNotLockable: a lock cannot be taken, and nobody has it.
        """
        taken: list[int] = []
        try:
            # In one order, whoever claims: two nodes that want the same two GPUs do not each get one of them.
            for uuid in sorted(uuids):
                taken.append(self._claim(uuid, instance, container))  # noqa: PERF401 - those taken so far must be known
            yield tuple(taken)
        finally:
            for descriptor in taken:
                os.close(descriptor)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _path(self, uuid: str) -> Path:
        return self._folder / f"{uuid}.lock"

    def _claim(self, uuid: str, instance: str, container: str) -> int:
        if not _UUID.fullmatch(uuid):
            raise GpuNotLockable(f"{uuid!r} is no name of a GPU")
        try:
            self._make_folder()
            deadline = time.monotonic() + CLAIM_SECONDS
            while True:
                descriptor = self._open(uuid)
                try:
                    self._begin(descriptor, uuid, deadline)
                    if self._is_the_file(descriptor, uuid):
                        self._take(descriptor, uuid, instance, container)
                        return descriptor
                except BaseException:
                    os.close(descriptor)
                    raise
                # Somebody removed or replaced it meanwhile: a lock on what has no name keeps nobody out.
                os.close(descriptor)
                if time.monotonic() > deadline:
                    raise GpuNotLockable(f"{self._path(uuid)} is being replaced again and again")
        except OSError as error:
            raise GpuNotLockable(f"{error.filename or self._path(uuid)}: {error.strerror}") from error

    def _take(self, descriptor: int, uuid: str, instance: str, container: str) -> None:
        """With the claim in hand: use the GPU, or say who does."""
        other = self._other(descriptor)
        if other:
            raise GpuInUse(f"{uuid} is in use by {other}")
        record = _record(descriptor)
        before = record.get("containers", ()) if self._is_mine(record) else ()
        kept = [name for name in before if name != container and processes_of(name)]
        text = json.dumps(self._me | {"instance": instance, "containers": [*kept, *([container] if container else [])]})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
        _set(descriptor, fcntl.F_RDLCK, _USING)
        _set(descriptor, fcntl.F_UNLCK, _CLAIMING)

    def _other(self, descriptor: int) -> str:
        """Which other node uses the GPU of an open file."""
        record = _record(descriptor)
        used = _is_locked(descriptor, _USING)
        if used and not record:
            return "a node that does not say who it is"
        if self._is_mine(record) or not record:
            return ""
        if used or any(processes_of(name) for name in record["containers"]):
            return f"{record['instance']} of node {record['node']} ({record['network']})"
        return ""

    def _is_mine(self, record: dict[str, Any]) -> bool:
        return bool(record) and self._me.items() <= record.items()

    def _make_folder(self) -> None:
        """The folder, if it is not there yet; one that somebody else could pull away is not used."""
        with suppress(FileExistsError):
            self._folder.mkdir()
            self._folder.chmod(FOLDER_MODE)
        found = self._folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            raise GpuNotLockable(
                f"{self._folder} is no folder of root's or of this user's", hint=f"have root make it: {MAKE}"
            )

    def _open(self, uuid: str) -> int:
        path, flags = self._path(uuid), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            # Without O_CREAT, which fs.protected_regular refuses for a file of somebody else's in such a folder.
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            try:
                descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                return self._open(uuid)
            # Whoever may make files in the folder may use this one; the umask has no say in that.
            os.fchmod(descriptor, self._folder.stat().st_mode & 0o666)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.close(descriptor)
            raise GpuNotLockable(f"{path} is no file of its own", hint="remove it, and find out who made it")
        return descriptor

    def _is_the_file(self, descriptor: int, uuid: str) -> bool:
        try:
            named = self._path(uuid).lstat()
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(descriptor))

    def _begin(self, descriptor: int, uuid: str, deadline: float) -> None:
        while True:
            try:
                _set(descriptor, fcntl.F_WRLCK, _CLAIMING)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            else:
                return
            if time.monotonic() > deadline:
                raise GpuInUse(f"{uuid} is being claimed by somebody who does not come to an end")
            time.sleep(0.01)


@contextmanager
def claim(
    locks: GpuLocks | None, uuids: Sequence[str], instance: str, *, container: str = ""
) -> Iterator[tuple[int, ...]]:
    """`GpuLocks.claimed` where GPUs are asked for.

    Raises:
        GpuInUse, GpuNotLockable: as there; the latter also where there are no locks to take.
    """
    if not uuids:
        yield ()
        return
    if locks is None:
        raise GpuNotLockable("this node was given no locks for GPUs")
    with locks.claimed(uuids, instance, container=container) as held:
        yield held


MAKE: Final = f"install -d -m {FOLDER_MODE:o} {FOLDER}"
"""Makes the folder, by hand or out of a tmpfiles.d(5)."""


def _set(descriptor: int, kind: int, byte: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _LOCK.pack(kind, os.SEEK_SET, byte, 1, 0))


def _is_locked(descriptor: int, byte: int) -> bool:
    """Whether another open file description has a lock on a byte. Takes none."""
    question = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    answer = _LOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, question))
    return bool(answer[0] != fcntl.F_UNLCK)


def _record(descriptor: int) -> dict[str, Any]:
    """What a file says; empty for nothing, or for what no node wrote. Anybody may have written it."""
    try:
        found = json.loads(os.pread(descriptor, _LIMIT, 0))
        words = {name: str(found[name]) for name in ("network", "node", "instance")}
        containers = [str(name) for name in found["containers"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    if not all(_WORD.fullmatch(word) for word in words.values()):
        return {}
    return {**words, "containers": [name for name in containers if _CONTAINER.fullmatch(name)][:16]}

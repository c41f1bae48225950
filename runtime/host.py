"""The real machine behind `schemas.ports`: clock, chance, subprocesses, durable files, threads, stop.

Start-up time is a feature: what only some commands need (subprocess, thread pool, tree removal) is imported on use.
"""

from __future__ import annotations

import fcntl
import os
import resource
import stat
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from schemas.ports import Completed, Ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from schemas.ports import Stop

T = TypeVar("T")
R = TypeVar("R")

_RANDOM_BITS: Final = 53
"""Bits of a double's significand: the finest uniform grid on [0, 1)."""


class SystemClock:
    """The machine's clocks."""

    def now(self) -> datetime:
        """The current wall-clock time, aware, UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Seconds since an arbitrary point; never goes back."""
        return time.monotonic()


class SystemRandomness:
    """The kernel's random numbers."""

    def token(self, length: int) -> str:
        """`length` random bytes as lowercase hex, unguessable."""
        return os.urandom(length).hex()

    def uniform(self, low: float, high: float) -> float:
        """A number from [low, high), for jitter."""
        number: float = (int.from_bytes(os.urandom(8), "big") >> (64 - _RANDOM_BITS)) / 2.0**_RANDOM_BITS
        return low + (high - low) * number


class StopEvent:
    """A `Stop` that can be requested, from any thread or from a signal handler."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Request the stop."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether stopping was requested."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep for at most `seconds`; returns early, and True, when stopping was requested."""
        return self._event.wait(seconds)


class HostProcesses:
    """Subprocesses in a session of their own, whose whole group ends with the call."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        max_output: int = 2**20,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: bytes = b"",
        memory: int | None = None,
        file_size: int | None = None,
        stop: Stop | None = None,
    ) -> Completed:
        """Run to the end; see `schemas.ports.Processes`.

        What the program leaves running in its process group is killed when it ends, so that no pipe stays open.

        Raises:
            InterruptedError: stopping was requested; the group was killed.
            TimeoutError: the time was up; the group was killed.
            OverflowError: it printed more than `max_output`; the group was killed.
            OSError: it could not be started.
        """
        from runtime.subprocesses import run_bounded  # noqa: PLC0415 - most commands start no subprocess

        return run_bounded(
            argv,
            timeout=timeout,
            max_output=max_output,
            env=env,
            cwd=cwd,
            stdin=stdin,
            limits={resource.RLIMIT_DATA: memory, resource.RLIMIT_FSIZE: file_size},
            stop=stop,
        )


class DurableFiles:
    """Changes that survive power loss once the method has returned."""

    def write(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        """Replace `path` atomically: temporary file, fsync, rename, fsync of the folder.

        The temporary file has a fixed name, so that a crash leaves at most one, which the next write takes over.
        """
        temporary = path.with_name(f".{path.name}.new")
        with _exclusive(temporary) as descriptor:
            os.fchmod(descriptor, mode)
            os.ftruncate(descriptor, 0)
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
            temporary.replace(path)
        self.sync_folder(path.parent)

    def make_folder(self, path: Path, *, mode: int = 0o755) -> None:
        """Create `path` and its missing parents; the mode holds for those created here, whatever the umask."""
        missing = []
        folder = path
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for created in reversed(missing):
            try:
                created.mkdir(mode)
            except FileExistsError:
                if not created.is_dir():
                    raise
                continue
            created.chmod(mode)
            self.sync_folder(created.parent)

    def sync_file(self, path: Path) -> None:
        """Fsync an existing file's data and metadata."""
        _sync(path, os.O_RDONLY)

    def sync_folder(self, path: Path) -> None:
        """Fsync a folder's entries."""
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)

    def rename(self, source: Path, target: Path) -> None:
        """Rename within one file system, and fsync both folders."""
        source.rename(target)
        self.sync_folder(target.parent)
        if source.parent != target.parent:
            self.sync_folder(source.parent)

    def link(self, source: Path, target: Path) -> None:
        """Hard-link `source` as `target`; fine if `target` is already the same file.

        Raises:
            FileExistsError: `target` is another file.
        """
        try:
            target.hardlink_to(source)
        except FileExistsError:
            if not os.path.samestat(target.lstat(), source.lstat()):
                raise
        self.sync_folder(target.parent)

    def remove(self, path: Path) -> None:
        """Remove a file or a whole folder, read-only ones too; fine if it is gone already. Links are not followed."""
        try:
            is_folder = stat.S_ISDIR(path.lstat().st_mode)
        except FileNotFoundError:
            return
        if is_folder:
            _remove_tree(path)
        else:
            path.unlink(missing_ok=True)
        self.sync_folder(path.parent)


class ThreadedConcurrency:
    """Threads, for work that releases the interpreter lock."""

    def map(self, function: Callable[[T], R], items: Iterable[T], *, limit: int) -> list[R]:
        """Apply `function` to all items, at most `limit` at once; results in order.

        The first exception is raised after the running calls have ended; no further ones are started.
        """
        work = list(items)
        if limit <= 1 or len(work) <= 1:
            return [function(item) for item in work]
        from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait  # noqa: PLC0415 - 10 ms

        failures: list[BaseException] = []

        def guarded(item: T) -> R | None:
            if failures:
                return None
            try:
                return function(item)
            except BaseException as error:
                failures.append(error)
                raise

        with ThreadPoolExecutor(min(limit, len(work))) as pool:
            futures = [pool.submit(guarded, item) for item in work]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
        if failures:
            raise failures[0]
        # Nothing failed, so every call ran and none of the results is the placeholder of a skipped one.
        return [future.result() for future in futures]  # type: ignore[misc]


def host_ports(stop: Stop | None = None) -> Ports:
    """The real machine as one value.

    Args:
        stop: the stop request that everything long observes; one that is never set by itself when absent.
    """
    return Ports(
        clock=SystemClock(),
        randomness=SystemRandomness(),
        processes=HostProcesses(),
        files=DurableFiles(),
        concurrency=ThreadedConcurrency(),
        stop=stop if stop is not None else StopEvent(),
    )


@contextmanager
def _exclusive(path: Path) -> Iterator[int]:
    """A file open for writing that no other writer has under this name: two writers take turns."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever held the lock before may have renamed the file away; then the name is free or someone else's.
            if _names(path, descriptor):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _names(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_tree(path: Path) -> None:
    import shutil  # noqa: PLC0415 - 5 ms, and few commands remove folders

    # A read-only folder (as models have) refuses the removal of its entries to everybody but root.
    for folder, _, _ in os.walk(path):
        with suppress(FileNotFoundError):
            Path(folder).chmod(0o700)
    with suppress(FileNotFoundError):
        shutil.rmtree(path)

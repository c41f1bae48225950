"""What the outside may do to us, as protocols: clock, randomness, concurrency, subprocesses, durable writes.

Everything that is not a pure decision receives these from whoever wires it (`reconciler.cli.wiring`), so that a
deterministic simulation can own time, chance, the disk and every crash. The real ones live in `runtime.host`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

T = TypeVar("T")
R = TypeVar("R")


class Clock(Protocol):
    """Time. Decisions never call it: they are given `now`."""

    def now(self) -> datetime:
        """The current wall-clock time, aware, UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary point; never goes back."""
        ...


class Stop(Protocol):
    """A request to stop, observed by everything that takes time."""

    def is_set(self) -> bool:
        """Whether stopping was requested."""
        ...

    def wait(self, seconds: float) -> bool:
        """Sleep for at most `seconds`; returns early, and True, when stopping was requested."""
        ...


class Randomness(Protocol):
    """Chance."""

    def token(self, length: int) -> str:
        """`length` random bytes as lowercase hex, unguessable."""
        ...

    def uniform(self, low: float, high: float) -> float:
        """A number from [low, high), for jitter."""
        ...


@dataclass(frozen=True, slots=True)
class Completed:
    """A finished subprocess."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Processes(Protocol):
    """Subprocesses that are waited for. No shell, no inherited standard input, bounded output and time."""

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
        """Run to the end.

        Args:
            argv: program and arguments.
            timeout: seconds after which the whole process group is killed.
            max_output: bytes of stdout, and of stderr, beyond which it is killed.
            env: the complete environment; None inherits.
            cwd: working directory.
            stdin: bytes given on standard input.
            memory: bytes that each of its processes may allocate (RLIMIT_DATA); None for no bound.
            file_size: bytes that each of them may make a file grow to (RLIMIT_FSIZE); None for no bound.
            stop: when set, the whole process group is killed; None for what is over soon anyway.

        Raises:
            InterruptedError: stopping was requested.
            TimeoutError: the time was up.
            OverflowError: it printed more than `max_output`.
            OSError: it could not be started.
        """
        ...


class Files(Protocol):
    """Durable changes to the file system. When a method returns, its effect survives power loss."""

    def write(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        """Replace `path` atomically: temporary file, fsync, rename, fsync of the folder."""
        ...

    def make_folder(self, path: Path, *, mode: int = 0o755) -> None:
        """Create `path` and its missing parents."""
        ...

    def sync_file(self, path: Path) -> None:
        """Fsync an existing file's data and metadata."""
        ...

    def sync_folder(self, path: Path) -> None:
        """Fsync a folder's entries."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Rename within one file system, and fsync both folders."""
        ...

    def link(self, source: Path, target: Path) -> None:
        """Hard-link `source` as `target`; fine if `target` is already the same file."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file or a whole folder; fine if it is gone already."""
        ...


class Concurrency(Protocol):
    """Bounded parallel work."""

    def map(self, function: Callable[[T], R], items: Iterable[T], *, limit: int) -> list[R]:
        """Apply `function` to all items, at most `limit` at once; results in order.

        The first exception is raised after the running calls have ended; no further ones are started.
        """
        ...


@dataclass(frozen=True, slots=True)
class Ports:
    """All of the above, passed as one."""

    clock: Clock
    randomness: Randomness
    processes: Processes
    files: Files
    concurrency: Concurrency
    stop: Stop

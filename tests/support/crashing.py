"""Disks that fail, and a process that is killed at a chosen durable write.

`python -m tests.support.crashing` reads one job per line from standard input, forks, does the job in the child with a
disk that kills it at the n-th durable call, and answers how the child ended. Forking costs milliseconds, importing
costs a second: so a sweep over every call is a sweep, not a sample.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from runtime.host import StopEvent, host_ports
from runtime.models.store import DiskModelStore
from schemas.errors import ModelCorrupt
from tests.support.models import OPEN_POLICY, gguf, make_model, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from schemas.ports import Files

T = TypeVar("T")
R = TypeVar("R")

CONFIG = b'{"the": "same in both versions"}'
V1 = {"config.json": CONFIG, "model.gguf": gguf(5000, seed=1), "sub/notes.txt": b"one"}
V2 = {"config.json": CONFIG, "copy.json": CONFIG, "empty.txt": b"", "model.gguf": gguf(6000, seed=2), "sub/a.txt": b"a"}
ONE = make_model(V1, version="v1")
TWO = make_model(V2, version="v2")


class CountingFiles:
    """A disk on which something happens around a chosen durable call."""

    def __init__(self, inner: Files, around: Callable[[int, Callable[[], None]], None]) -> None:
        """Wrap a disk.

        Args:
            inner: the real one.
            around: gets the call's number, from 0, and the call itself.
        """
        self.calls = 0
        self.half: Callable[[], None] = lambda: None
        """Does a part of the present call, as far as it has parts."""
        self._inner = inner
        self._around = around

    def _do(self, call: Callable[[], None], half: Callable[[], None] = lambda: None) -> None:
        self.half = half
        number = self.calls
        self.calls += 1
        self._around(number, call)

    def write(self, path: Path, data: bytes, *, mode: int = 0o644) -> None:
        """See `Files`."""
        half = path.with_name(f".{path.name}.new")
        self._do(lambda: self._inner.write(path, data, mode=mode), lambda: _write_half(half, data))

    def make_folder(self, path: Path, *, mode: int = 0o755) -> None:
        """See `Files`."""
        self._do(lambda: self._inner.make_folder(path, mode=mode))

    def sync_file(self, path: Path) -> None:
        """See `Files`."""
        self._do(lambda: self._inner.sync_file(path))

    def sync_folder(self, path: Path) -> None:
        """See `Files`."""
        self._do(lambda: self._inner.sync_folder(path))

    def rename(self, source: Path, target: Path) -> None:
        """See `Files`."""
        self._do(lambda: self._inner.rename(source, target))

    def link(self, source: Path, target: Path) -> None:
        """See `Files`."""
        self._do(lambda: self._inner.link(source, target))

    def remove(self, path: Path) -> None:
        """See `Files`."""
        self._do(lambda: self._inner.remove(path), lambda: _remove_half(path))


def _write_half(path: Path, data: bytes) -> None:
    path.write_bytes(data[: len(data) // 2])


def _remove_half(path: Path) -> None:
    """Remove one file of a folder."""
    for file in sorted(path.rglob("*")) if path.is_dir() else ():
        if file.is_file():
            file.unlink()
            return


def open_store(root: Path, around: Callable[[int, Callable[[], None]], None]) -> tuple[DiskModelStore, CountingFiles]:
    """A store on a disk with something around its calls."""
    real = host_ports()
    files = CountingFiles(real.files, around)
    # One processor and one connection: the n-th call is the same one each time.
    ports = replace(real, files=files, concurrency=OneByOne())
    return DiskModelStore(root, ports=ports, policy=OPEN_POLICY, connections=1, stall=5, reserve=0), files


class OneByOne:
    """Everything in the calling thread, in order."""

    def map(self, function: Callable[[T], R], items: Iterable[T], *, limit: int) -> list[R]:
        """See `Concurrency`."""
        return [function(item) for item in items]


def perform(store: DiskModelStore, operation: str, source: str) -> None:
    """One of the operations that write."""
    stop = StopEvent()
    if operation == "acquire":
        store.acquire(TWO, [source], progress=silent, stop=stop)
    elif operation == "archive":
        store.archive(ONE, progress=silent, stop=stop)
    elif operation == "restore":
        store.acquire(ONE, [], progress=silent, stop=stop)
    elif operation == "remove":
        store.remove(ONE.digest)
    elif operation == "verify":
        try:
            store.verify(ONE, progress=silent, stop=stop)
        except ModelCorrupt:
            return
    else:
        raise ValueError(operation)


def _child(root: Path, operation: str, source: str, at: int, when: str) -> None:
    """Perform an operation; killed by its own hand, as power loss would, before, in, or after call `at`."""

    def around(number: int, call: Callable[[], None]) -> None:
        if number == at and when == "within":
            files.half()
        elif number != at or when == "after":
            call()
        if number == at:
            os.kill(os.getpid(), signal.SIGKILL)

    store, files = open_store(root, around)
    perform(store, operation, source)


def _main() -> None:
    for line in sys.stdin:
        root, operation, source, at, when = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _child(Path(root), operation, source, int(at), when)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        sys.stdout.write("killed\n" if os.WIFSIGNALED(status) else f"ended {os.WEXITSTATUS(status)}\n")
        sys.stdout.flush()


class Killer:
    """Runs operations in processes that are killed at a chosen durable call."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, root: Path, operation: str, source: str, *, at: int, when: str) -> str:
        """How the process ended: `killed`, or `ended <status>`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{root}\t{operation}\t{source}\t{at}\t{when}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@contextmanager
def killer() -> Iterator[Killer]:
    """A process that forks victims."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.crashing"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as process:
        yield Killer(process)
        assert process.stdin is not None
        process.stdin.close()


if __name__ == "__main__":
    _main()

"""Hashing pieces that are already on the disk, on all processors.

Two ways to look: through the page cache, mapped, which is what an engine that maps the file would see, at the speed of
memory; and past the cache (`bare`), which is what is on the disk.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

from runtime.models.bare import BareReader
from runtime.models.layout import open_regular
from runtime.models.mapping import NotMapped, windows
from schemas.digests import Hasher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from runtime.models.pieces import Piece
    from schemas.ports import Concurrency, Stop

WINDOW: Final = 2**20
"""Bytes read and hashed at a time: fits a processor's second-level cache, so that hashing reads what reading wrote."""


class Stopped(Exception):
    """Hashing ended because a stop was requested."""


_MOST: Final = 16
"""Threads at most: as many hash 50 GB a second, more than memory and disks give."""


def processors() -> int:
    """Threads that are worth having: one for each processor that this process may use."""
    return min(_MOST, len(os.sched_getaffinity(0)))


def bad_pieces(
    work: Iterable[tuple[str, Piece]],
    base: Path,
    *,
    concurrency: Concurrency,
    stop: Stop,
    checked: Callable[[str, Piece], None] = lambda _path, _piece: None,
    past_cache: bool = False,
) -> frozenset[int]:
    """The numbers of the pieces that do not have their hash, or cannot be read.

    Args:
        work: pieces, each with the path of its file below `base`.
        base: the folder of the files; no link below it is followed.
        concurrency: bounded threads.
        stop: ends the work early.
        checked: told of each piece, good or bad, from any thread.
        past_cache: look at the disk, not at what the page cache has of it.

    Raises:
        Stopped: `stop` was set.
    """
    queue = _Shared(work)
    bad: list[int] = []

    def strip(_number: int) -> None:
        reader = BareReader(WINDOW) if past_cache else None
        for path, piece in queue:
            if stop.is_set():
                raise Stopped
            if not is_good(base, path, piece, reader):
                bad.append(piece.number)
            checked(path, piece)

    count = processors()
    concurrency.map(strip, range(count), limit=count)
    return frozenset(bad)


def read_piece(file: int, piece: Piece, view: memoryview) -> Iterator[tuple[int, memoryview]]:
    """A piece of an open file, window by window: each window's offset in the file, and its bytes within `view`.

    Raises:
        OSError: it cannot be read, or the file ends before the piece does.
    """
    done = 0
    while done < piece.length:
        count = os.preadv(file, [view[: piece.length - done]], piece.offset + done)
        if not count:
            raise OSError("the file ends early")
        yield piece.offset + done, view[:count]
        done += count


def is_good(base: Path, path: str, piece: Piece, reader: BareReader | None = None) -> bool:
    """Whether a piece of a file below `base` has its hash. What cannot be read has not.

    Args:
        base: the folder; no link below it is followed.
        path: the file.
        piece: the piece.
        reader: looks past the page cache; without one the file is mapped.
    """
    try:
        if reader is not None:
            with reader.open(base, path) as bare:
                return _hash(bare.windows(piece)) == piece.hash
        file = open_regular(base, path)
        try:
            return _hash_mapped(file, piece) == piece.hash
        finally:
            os.close(file)
    except OSError:
        return False


def _hash_mapped(file: int, piece: Piece) -> bytes:
    try:
        return _hash(windows(file, piece))
    except NotMapped:
        view = memoryview(bytearray(WINDOW))
        return _hash(window for _, window in read_piece(file, piece, view))


def _hash(parts: Iterable[memoryview]) -> bytes:
    hasher = Hasher()
    for part in parts:
        hasher.update(part)
    return bytes(hasher.digest())


class _Shared:
    """An iterator that several threads draw from."""

    def __init__(self, work: Iterable[tuple[str, Piece]]) -> None:
        self._items = iter(work)
        self._lock = threading.Lock()

    def __iter__(self) -> _Shared:
        return self

    def __next__(self) -> tuple[str, Piece]:
        with self._lock:
            return next(self._items)

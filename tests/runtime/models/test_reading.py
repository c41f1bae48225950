"""Reading for the sake of hashing: mapped, and past the page cache. What cannot be read is an error, no crash."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from runtime.host import StopEvent, ThreadedConcurrency
from runtime.models import bare, hashing, mapping
from runtime.models.pieces import Piece
from schemas.digests import raw_hash
from schemas.manifest import PIECE_SIZE
from tests.support.models import noise

if TYPE_CHECKING:
    from pathlib import Path

DATA = noise(PIECE_SIZE + 2**22 + 4321, seed=5)
PIECES = [
    Piece(number, start, len(DATA[start : start + PIECE_SIZE]), raw_hash(DATA[start : start + PIECE_SIZE]))
    for number, start in enumerate(range(0, len(DATA), PIECE_SIZE))
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one file of two pieces."""
    (tmp_path / "file").write_bytes(DATA)
    return tmp_path


def bad(folder: Path, *, past_cache: bool) -> frozenset[int]:
    """Bad pieces of the file."""
    work = [("file", piece) for piece in PIECES]
    return hashing.bad_pieces(work, folder, concurrency=ThreadedConcurrency(), stop=StopEvent(), past_cache=past_cache)


@pytest.mark.parametrize("past_cache", [False, True])
def test_a_changed_byte_is_found_in_its_piece(folder: Path, past_cache: bool) -> None:
    """Both ways see the same bytes, to the last one of a file that ends within a block."""
    assert not bad(folder, past_cache=past_cache)
    with (folder / "file").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(bytes([DATA[-1] ^ 1]))
    assert bad(folder, past_cache=past_cache) == {1}


@pytest.mark.parametrize("past_cache", [False, True])
def test_a_file_that_shrank_is_bad_and_kills_nobody(folder: Path, past_cache: bool) -> None:
    """Mapped memory beyond a file's end is a SIGBUS to whoever touches it: nobody does."""
    os.truncate(folder / "file", PIECE_SIZE + 10)
    assert bad(folder, past_cache=past_cache) == {1}


def test_a_file_that_shrinks_after_it_was_mapped_kills_nobody(folder: Path) -> None:
    """Between the look at the size and the hashing of a window, the window's pages are asked for first."""
    descriptor = os.open(folder / "file", os.O_RDONLY)
    try:
        windows = mapping.windows(descriptor, PIECES[0])
        next(windows)
        os.truncate(folder / "file", 0)
        with pytest.raises(OSError, match="Bad address"):
            next(windows)
    finally:
        os.close(descriptor)


def test_where_a_file_cannot_be_mapped_safely_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel before 5.14 answers EINVAL to the populating call; the verdict is the same."""

    def refuse(*_: object, first: bool) -> None:
        raise mapping.NotMapped

    monkeypatch.setattr(mapping, "_populate", refuse)
    assert not bad(folder, past_cache=False)


def test_where_direct_reads_are_refused_the_cache_is_dropped_instead(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without O_DIRECT: read as usual, and what was cached is given back."""
    opened = bare.open_regular
    dropped = []

    def refuse(base: Path, path: str, flags: int = os.O_RDONLY) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no direct reads")
        return opened(base, path, flags)

    def fadvise(_file: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        dropped.append((offset, length))

    monkeypatch.setattr(bare, "open_regular", refuse)
    monkeypatch.setattr(os, "posix_fadvise", fadvise)
    assert not bad(folder, past_cache=True)
    assert {offset for offset, _ in dropped} >= {0, PIECE_SIZE}


def test_direct_reads_that_are_refused_late_fall_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems open a file for direct reads and refuse the read itself."""
    honest = os.preadv
    refused = []

    def preadv(file: int, buffers: list[memoryview], offset: int) -> int:
        if bare._flags(file) & os.O_DIRECT:
            refused.append(offset)
            raise OSError(errno.EINVAL, "not aligned for us")
        return honest(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    assert not bad(folder, past_cache=True)

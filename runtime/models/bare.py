"""Reading a file past the page cache: what is on the disk, and without pushing out what an engine has in memory.

`O_DIRECT` where the file system has it. Elsewhere the cached pages are dropped before a window is read and after
(posix_fadvise(2)); pages that somebody has mapped stay, and are then all that can be looked at.
"""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from runtime.models.layout import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from runtime.models.pieces import Piece

_REFUSALS: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP})
"""What a file system without `O_DIRECT` says when a file is opened, or read, with it."""


class BareFile:
    """One open file."""

    def __init__(self, file: int, buffer: memoryview) -> None:
        self._file = file
        self._buffer = buffer
        self._direct = bool(_flags(file) & os.O_DIRECT)

    def windows(self, piece: Piece) -> Iterator[memoryview]:
        """A piece, window by window. A window is overwritten when the next one is asked for.

        Raises:
            OSError: it cannot be read, or the file ends before the piece does.
        """
        done = 0
        while done < piece.length:
            # Whole windows, although the piece may end within: direct reads end at the file's end, or at a block.
            count = min(self._read(piece.offset + done), piece.length - done)
            if not count:
                raise OSError(errno.EIO, "the file ends early")
            yield self._buffer[:count]
            done += count

    def _read(self, offset: int) -> int:
        if self._direct:
            try:
                return os.preadv(self._file, [self._buffer], offset)
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                self._direct = False
                _drop_direct(self._file)
        os.posix_fadvise(self._file, offset, len(self._buffer), os.POSIX_FADV_DONTNEED)
        count = os.preadv(self._file, [self._buffer], offset)
        os.posix_fadvise(self._file, offset, len(self._buffer), os.POSIX_FADV_DONTNEED)
        return count


class BareReader:
    """Reads files past the cache, with one buffer. For one thread."""

    def __init__(self, window: int) -> None:
        """Take the buffer.

        Args:
            window: bytes read at a time; a multiple of the page size.
        """
        # Mapped memory begins at a page, as direct reads want it.
        self._area = memoryview(mmap.mmap(-1, window))

    @contextmanager
    def open(self, base: Path, path: str) -> Iterator[BareFile]:
        """Open a file below `base`; no link is followed.

        Raises:
            OSError: it cannot be opened.
        """
        try:
            file = open_regular(base, path, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise
            file = open_regular(base, path)
        try:
            yield BareFile(file, self._area)
        finally:
            os.close(file)


def _flags(file: int) -> int:
    import fcntl  # noqa: PLC0415 - only reading past the cache needs it

    return fcntl.fcntl(file, fcntl.F_GETFL)


def _drop_direct(file: int) -> None:
    import fcntl  # noqa: PLC0415 - as above

    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~os.O_DIRECT)

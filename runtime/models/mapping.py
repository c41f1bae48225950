"""Mapping a piece of a file, so that hashing reads the page cache itself: a fifth faster than reading into a buffer.

A mapped page that cannot be read (a rotten sector, a file that shrank) is a SIGBUS, which ends the process. So every
window is populated first, by a call that reports the same as an error: `MADV_POPULATE_READ` (Linux 5.14, madvise(2)).
Older kernels, and files that cannot be mapped, are told apart by `NotMapped`: the caller reads instead.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from runtime.models.pieces import Piece

_WINDOW: Final = 2**22
"""Bytes populated at a time: few calls, and no time for the kernel to take a page back before it is hashed."""

_POPULATE_READ: Final = 22
"""`MADV_POPULATE_READ` of asm-generic/mman-common.h; the standard library has no name for it."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
"""Called through ctypes because `mmap.madvise` keeps the interpreter lock while the disk is read."""
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_LIBC.madvise.restype = ctypes.c_int


class NotMapped(Exception):
    """This kernel or file system cannot map safely."""


def windows(file: int, piece: Piece) -> Iterator[memoryview]:
    """A piece of an open file, window by window. A window is gone when the next one is asked for.

    Raises:
        NotMapped: it cannot be mapped here; nothing was given yet.
        OSError: it cannot be read, or the file ends before the piece does.
    """
    if os.fstat(file).st_size < piece.offset + piece.length:
        raise OSError(errno.EIO, "the file ends early")
    try:
        # A private mapping is only for its address, which ctypes gives of writable memory alone. Nothing is written.
        area = mmap.mmap(file, piece.length, access=mmap.ACCESS_COPY, offset=piece.offset)
    except (OSError, ValueError) as error:
        raise NotMapped from error
    try:
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        with memoryview(area) as whole:
            for offset in range(0, piece.length, _WINDOW):
                length = min(_WINDOW, piece.length - offset)
                _populate(start + offset, length, first=offset == 0)
                with whole[offset : offset + length] as window:
                    yield window
    finally:
        area.close()


def _populate(address: int, length: int, *, first: bool) -> None:
    while _LIBC.madvise(address, length, _POPULATE_READ):
        number = ctypes.get_errno()
        if number == errno.EINVAL and first:
            raise NotMapped
        if number not in (errno.EINTR, errno.EAGAIN):
            raise OSError(errno.EIO, os.strerror(number))

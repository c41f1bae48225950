"""Members of a tar archive, in the one form in which this project writes them."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import Final

BLOCK: Final = tarfile.BLOCKSIZE
END: Final = bytes(2 * BLOCK)
"""Two blocks of zeros end an archive (POSIX.1-1988, ustar)."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where a member's bytes lie in an archive."""

    offset: int
    size: int


def header(path: str, size: int) -> bytes:
    """The header of a regular file of nobody, from the beginning of time: one block, for names of at most 100 bytes.

    GNU's form differs from POSIX's only in how it writes sizes from 8 GiB on, which every tar of today reads.
    """
    info = tarfile.TarInfo(path)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def padding(size: int) -> int:
    """Zeros between a member's last byte and the next header."""
    return -size % BLOCK

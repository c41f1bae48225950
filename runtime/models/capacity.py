"""Disk space: asked for and taken before the first byte is fetched."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from schemas.errors import DownloadFailed, NoSpace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BLOCK: Final = 512
"""Bytes of the unit of `st_blocks`, whatever the file system's own block size (POSIX, sys/stat.h)."""

OVERHEAD: Final = 2**20
"""Bytes beside the files themselves: folders, journal, stamp."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def free_bytes(folder: Path) -> int:
    """Bytes that this process may still write on the folder's file system (what is reserved for root left out).

    Raises:
        OSError: the file system cannot be asked.
    """
    seen = os.statvfs(folder)
    return seen.f_bavail * seen.f_frsize


def allocated(seen: os.stat_result) -> int:
    """Bytes of the disk that a file already occupies, at most its size."""
    return min(seen.st_size, seen.st_blocks * _BLOCK)


def admit(folder: Path, wanted: int, *, reserve: int, what: str) -> None:
    """Check that the disk can take what is about to be written.

    Args:
        folder: a folder on the disk.
        wanted: bytes about to be written.
        reserve: bytes to leave free.
        what: what wants them, for people.

    Raises:
        NoSpace: it cannot; says the numbers.
    """
    free = free_bytes(folder)
    if wanted and wanted + reserve > free:
        raise NoSpace(
            f"{what} needs {amount(wanted)}, {amount(free)} is free on its disk, {amount(reserve)} of it is reserved",
            hint=f"free {amount(wanted + reserve - free)}, or move the state directory to a larger disk",
        )


def preallocate(file: int, size: int) -> None:
    """Give a file its final size with its blocks taken, so that no later write of its bytes finds the disk full.

    Raises:
        OSError: ENOSPC and the like.
    """
    if os.fstat(file).st_size > size:
        os.ftruncate(file, size)
    if size:
        os.posix_fallocate(file, 0, size)


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Translate what the operating system says about our own disk into our errors.

    Args:
        what: what was being done, for people.

    Raises:
        NoSpace: the disk or the quota is full.
        DownloadFailed: any other error of the disk.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise NoSpace(f"{what}: {reason}", hint="free some space on the disk of the state directory") from error
        raise DownloadFailed(f"{what}: {reason}", hint="look at the disk of the state directory") from error


def amount(size: int) -> str:
    """Bytes as people read them: three digits and a unit."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:  # noqa: PLR2004 - the step between binary units
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"

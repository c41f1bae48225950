"""What some file systems can: share blocks between files (reflinks), and refuse changed bytes (fs-verity).

Both are asked for with an ioctl, and neither is ever needed: a refusal is an answer.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_CLONE_RANGE: Final = 0x4020940D
"""`FICLONERANGE` of linux/fs.h: _IOW(0x94, 13, struct file_clone_range), 32 bytes."""
_CLONE: Final = struct.Struct("=qQQQ")
"""`struct file_clone_range`: source descriptor, source offset, length (0: to the end), target offset."""

_ENABLE_VERITY: Final = 0x40806685
"""`FS_IOC_ENABLE_VERITY` of linux/fsverity.h: _IOW('f', 133, struct fsverity_enable_arg), 128 bytes."""
_ENABLE: Final = struct.Struct("=IIIIQIIQ88x")
"""`struct fsverity_enable_arg`: version, hash algorithm, block size, sizes and addresses of salt and signature."""
_MEASURE_VERITY: Final = 0xC0046686
"""`FS_IOC_MEASURE_VERITY`: _IOWR('f', 134, struct fsverity_digest), its fixed part of 4 bytes."""
_DIGEST: Final = struct.Struct("=HH64x")
"""`struct fsverity_digest`: algorithm, size of the digest (room on the way in), digest."""
_SHA256: Final = 1
_BLOCK: Final = 4096

_UNABLE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS})
"""What a kernel or file system without fs-verity says. EINVAL: pages smaller than the block, and odd file systems."""


def clone_range(source: int, offset: int, length: int, target: int, at: int) -> bool:
    """Let a part of one file share its blocks with a part of another, if the file system can.

    Args:
        source: descriptor, open for reading.
        offset: first byte there.
        length: bytes.
        target: descriptor, open for writing.
        at: first byte here.

    Returns:
        False where it cannot (another file system, one without reflinks, bytes that are no whole blocks).
    """
    try:
        fcntl.ioctl(target, _CLONE_RANGE, _CLONE.pack(source, offset, length, at))
    except OSError:
        return False
    return True


def enable_verity(file: int) -> bool:
    """Have the kernel check every read of a file from now on, and refuse every write. Idempotent, durable.

    Args:
        file: descriptor of a read-only file that nobody has open for writing.

    Returns:
        False where kernel or file system cannot.

    Raises:
        OSError: it can, and failed.
    """
    try:
        fcntl.ioctl(file, _ENABLE_VERITY, _ENABLE.pack(1, _SHA256, _BLOCK, 0, 0, 0, 0, 0))
    except OSError as error:
        if error.errno == errno.EEXIST:
            return True
        # A file without a byte to protect, or one that a process still has open for writing, is left as it is.
        if error.errno in _UNABLE or error.errno == errno.ETXTBSY:
            return False
        raise
    return True


def verity_refusal(folder: Path) -> str:
    """Why files of a folder's file system cannot have fs-verity; empty where they can, or nobody knows. Only looks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return ""
    try:
        fcntl.ioctl(descriptor, _MEASURE_VERITY, bytearray(_DIGEST.pack(0, 64)))
    except OSError as error:
        # ENODATA: the file system can, this folder itself has none, as no folder has.
        return "" if error.errno == errno.ENODATA else error.strerror or str(error)
    finally:
        os.close(descriptor)
    return ""


def has_verity(file: int) -> bool:
    """Whether the kernel checks a file's reads. False where it cannot be asked."""
    try:
        fcntl.ioctl(file, _MEASURE_VERITY, bytearray(_DIGEST.pack(0, 64)))
    except OSError:
        return False
    return True

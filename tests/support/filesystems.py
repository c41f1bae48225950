"""File systems of a test's own, on a loop device: what the machine's own disk cannot do. Needs root and mkfs."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MKFS = {
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
    "ext4": ("mkfs.ext4", "-q", "-O", "verity"),
}
_SECONDS = 60


@contextmanager
def mounted(kind: str, folder: Path, size: int = 400 * 2**20) -> Iterator[Path]:
    """A fresh file system, mounted below `folder`; the test is skipped where this machine cannot have one.

    Args:
        kind: `xfs`, `btrfs`, or `ext4` (with the verity feature).
        folder: for its image and its mount point.
        size: bytes; the image is sparse. XFS wants 300 MiB.
    """
    make, *options = _MKFS[kind]
    if os.geteuid() != 0:
        pytest.skip(f"mounting {kind} needs root")
    program = shutil.which(make, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        pytest.skip(f"{make} is not installed")
    image, point = folder / f"{kind}.img", folder / kind
    point.mkdir()
    with image.open("wb") as stream:
        stream.truncate(size)
    subprocess.run([program, *options, str(image)], check=True, capture_output=True, timeout=_SECONDS)
    done = subprocess.run(
        ["mount", "-o", "loop", str(image), str(point)], capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        pytest.skip(f"this machine mounts no {kind}: {done.stderr.strip()}")
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", str(point)], check=True, capture_output=True, timeout=_SECONDS)

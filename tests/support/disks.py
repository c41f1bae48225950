"""Small file systems in memory, which really fill up."""

from __future__ import annotations

import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def small_disk(folder: Path, **options: int) -> Iterator[Path]:
    """A tmpfs of its own, gone after the `with`. Skips where nobody may mount one.

    Args:
        folder: where it is mounted; created.
        options: of tmpfs: `size` in bytes, `nr_inodes`.
    """
    folder.mkdir()
    given = ",".join(f"{name}={value}" for name, value in options.items())
    command = ["mount", "-t", "tmpfs", "-o", given, "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)

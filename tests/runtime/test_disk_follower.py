"""A disk that runs low wakes the daemon, and so does one on which there is room again: real file systems."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from runtime.disk_follower import DiskFollower
from tests.support.disks import small_disk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 2**20
PATIENCE = 60.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """64 MiB, all of them free."""
    with small_disk(tmp_path / "disk", size=64 * MIB) as folder:
        yield folder


def fill(disk: Path, size: int) -> None:
    """Let so much of it be taken."""
    (disk / "ballast").write_bytes(bytes(size))


def test_levels_are_told_once_in_both_directions(disk: Path) -> None:
    """From half to a twentieth, to nothing, and back; swinging about a level is no news."""
    follower = DiskFollower([disk])
    assert [follower.look(), follower.look()] == [False, False]
    fill(disk, 40 * MIB)
    assert not follower.look(), "more than a fifth is free, as before"
    fill(disk, 61 * MIB)
    assert [follower.look(), follower.look()] == [True, False]
    fill(disk, 60 * MIB + MIB // 2)
    assert not follower.look(), "above the level, and hardly moved"
    fill(disk, 64 * MIB)
    assert follower.look()
    (disk / "ballast").unlink()
    assert [follower.look(), follower.look()] == [True, False]


def test_what_is_not_there_is_left_out(disk: Path, tmp_path: Path) -> None:
    """A cold disk that is not mounted says nothing, and keeps nothing from being said of the others."""
    follower = DiskFollower([tmp_path / "none", disk])
    assert not follower.look()
    fill(disk, 63 * MIB)
    assert follower.look()


def test_it_tells_until_it_is_closed(disk: Path) -> None:
    """As a daemon has it: a thread of its own."""
    told = threading.Event()
    follower = DiskFollower([disk], every=0.01)
    thread = threading.Thread(target=follower.follow, args=(told.set,), daemon=True)
    follower.look()
    thread.start()
    fill(disk, 64 * MIB)
    assert told.wait(PATIENCE)
    told.clear()
    (disk / "ballast").unlink()
    assert told.wait(PATIENCE)
    follower.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()

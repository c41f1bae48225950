"""Control groups of engines that nobody removed go with a later start, and no other does (I8)."""

from __future__ import annotations

import os
import secrets
import subprocess
from typing import TYPE_CHECKING

import pytest

from runtime.backends.native_group import ABANDONED_SECONDS, CONTROLLERS, Group, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def group() -> Iterator[Group]:
    """A group as a start makes it."""
    made = Group(f"test{secrets.token_hex(8)}")
    if made.make(memory=2**28, pids=16, cpus=1):
        pytest.skip("this machine lets nobody here make control groups")
    yield made
    made.remove()


def folders(group: Group) -> set[Path]:
    """Where it is."""
    return {group.folder(name) for name in CONTROLLERS}


def age(group: Group) -> None:
    """Make it look as if it was used long ago."""
    for folder in folders(group):
        then = folder.stat().st_mtime - 2 * ABANDONED_SECONDS
        os.utime(folder, (then, then))


def test_an_abandoned_group_goes(group: Group) -> None:
    """Its supervisor and its agent were killed, and its instance's folder is gone: only the group is left."""
    sweep()
    assert all(folder.exists() for folder in folders(group)), "one that was just made is about to be joined"
    age(group)
    assert sweep() >= len(folders(group))
    assert not any(folder.exists() for folder in folders(group))


def test_a_group_that_is_used_stays(group: Group) -> None:
    """However old it is: the kernel says who is in it."""
    age(group)
    with subprocess.Popen(["sleep", "600"]) as process:
        for folder in folders(group):
            (folder / "cgroup.procs").write_text(str(process.pid))
        sweep()
        assert all(folder.exists() for folder in folders(group))
        process.kill()


def test_a_group_that_is_made_again_is_young(group: Group) -> None:
    """An instance that is started again after years finds its group, and nobody takes it away before it joins."""
    age(group)
    assert group.make(memory=2**28, pids=16, cpus=1) == ()
    sweep()
    assert all(folder.exists() for folder in folders(group))

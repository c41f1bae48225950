"""Logs of instances: read over rotations, followed to the end, and kept within bounds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from runtime import logs
from runtime.backends.native_shim import Log
from runtime.host import host_ports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def write(log: Log, *numbers: int) -> None:
    """Lines of ten bytes."""
    for number in numbers:
        log.write(b"line %04d\n" % number)


def read(data: Iterator[bytes]) -> list[int]:
    """The numbers of lines."""
    return [int(line.split()[1]) for line in b"".join(data).splitlines()]


@pytest.mark.parametrize(("lines", "expected"), [(0, []), (3, [6, 7, 8]), (7, [*range(2, 9)]), (99, [*range(9)])])
def test_the_last_lines_reach_into_the_file_before(tmp_path: Path, lines: int, expected: list[int]) -> None:
    """A rotation in between is not seen."""
    write(Log(str(tmp_path), 100), *range(9))
    assert (tmp_path / logs.BEFORE).exists()
    assert read(logs.read(tmp_path, lines=lines)) == expected


def test_a_follower_reads_to_the_end_over_rotations(tmp_path: Path) -> None:
    """What comes between two looks is read once, in order: before, at and after a rotation, and after the end."""
    log = Log(str(tmp_path), 100)

    def life() -> Iterator[bool]:
        for first in range(0, 12, 3):
            write(log, *range(first, first + 3))
            yield True
        write(log, 12)
        yield False

    followed = logs.follow(tmp_path, lines=5, stop=host_ports().stop, goes_on=life())
    assert read(followed) == [*range(13)]


def test_only_the_newest_are_kept_of_what_is_gone(tmp_path: Path) -> None:
    """An engine that crashes for years fills no disk; the logs of what is there stay, however old."""
    for age in range(6):
        (tmp_path / f"i{age}").mkdir()
        (tmp_path / f"i{age}" / logs.LOG).write_text("hello")
        os.utime(tmp_path / f"i{age}" / logs.LOG, (1000 - age, 1000 - age))
    assert logs.instances(tmp_path) == [f"i{age}" for age in range(6)]
    logs.prune(tmp_path, ["i5", "i0"], host_ports().files, keep=2)
    assert logs.instances(tmp_path) == ["i0", "i1", "i2", "i5"]
    assert logs.instances(tmp_path / "none") == []

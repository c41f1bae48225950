"""What instances printed: files that rotate, read as one, while they grow and after their instance is gone.

Each instance has a folder with `output.log` and, once that was full, `output.log.1` before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runtime.growing_file import GrowingFile

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path
    from typing import Self

    from schemas.ports import Files, Stop

LOG: Final = "output.log"
BEFORE: Final = "output.log.1"
"""The file that grows, and the one that was full before it."""

LOOK_SECONDS: Final = 0.2
"""Between two looks at a file that is followed: a person does not notice, and a look costs microseconds."""

KEPT: Final = 16
"""Folders that are kept of instances that are gone: the failures of the last days, in bounded space."""


def instances(folder: Path) -> list[str]:
    """Names of the instances that something is kept of, the one that printed last first."""
    try:
        found = [(_last(entry), entry.name) for entry in folder.iterdir() if entry.is_dir()]
    except FileNotFoundError:
        return []
    return [name for _, name in sorted(found, reverse=True)]


def _last(folder: Path) -> float:
    try:
        return (folder / LOG).stat().st_mtime
    except OSError:
        return folder.stat().st_mtime


def prune(folder: Path, present: Collection[str], files: Files, *, keep: int = KEPT) -> None:
    """Remove the oldest of what is kept of instances that are gone.

    Args:
        folder: of all instances' logs.
        present: names of the instances that there are; theirs stay.
        files: removes.
        keep: how many stay of those that are gone.
    """
    gone = [name for name in instances(folder) if name not in present]
    for name in gone[keep:]:
        files.remove(folder / name)


def read(folder: Path, *, lines: int) -> Iterator[bytes]:
    """The last lines of what one instance printed.

    Args:
        folder: the instance's.
        lines: how many; fewer where there are no more.
    """
    with _Reading(folder) as reading:
        yield from reading.tail(lines)


def follow(folder: Path, *, lines: int, stop: Stop, goes_on: Iterator[bool]) -> Iterator[bytes]:
    """The last lines, and then all that comes, over rotations; ends with the instance.

    Args:
        folder: the instance's.
        lines: as for `read`.
        stop: ends it.
        goes_on: whether the instance runs, asked anew at every look; what it printed last is still read.
    """
    with _Reading(folder) as reading:
        yield from reading.tail(lines)
        for runs in goes_on:
            yield from reading.more()
            if not runs or stop.wait(LOOK_SECONDS):
                return


class _Reading:
    """A place in what an instance has printed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = GrowingFile(folder / LOG)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def tail(self, lines: int) -> Iterator[bytes]:
        """The last lines of both files; the place is then the end."""
        self._file.open()
        now = b"".join(self._file.rest())
        wanted = now.splitlines(keepends=True)[-lines:] if lines else []
        if len(wanted) < lines:
            before = self._before()
            # A line may have begun in the file before.
            wanted = (before + now).splitlines(keepends=True)[-lines:]
        yield from wanted

    def more(self) -> Iterator[bytes]:
        """What has come since."""
        if not self._file.open():
            return
        yield from self._file.rest()
        if self._file.is_replaced():
            # What came between the last read and the rotation is read before the new file is.
            yield from self._file.rest()
            self._file.close()
            if self._file.open():
                yield from self._file.rest()

    def _before(self) -> bytes:
        try:
            return (self._folder / BEFORE).read_bytes()
        except FileNotFoundError:
            return b""

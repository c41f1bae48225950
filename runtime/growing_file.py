"""A file that another process appends to, and replaces by an empty one of its name when it is full."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK: Final = 2**16


class GrowingFile:
    """A place in it, which survives its being renamed: the descriptor is the file's, not the name's."""

    def __init__(self, path: Path) -> None:
        """Nothing is opened yet.

        Args:
            path: the name of the file that grows; no link is followed.
        """
        self._path = path
        self._descriptor = -1

    def open(self) -> bool:
        """Begin with the file that has the name, unless one is open; whether one is.

        Raises:
            OSError: it cannot be opened, though it is there.
        """
        if self._descriptor < 0:
            try:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                return False
        return True

    def rest(self) -> Iterator[bytes]:
        """What has come since, in pieces; nothing where none is open."""
        while self._descriptor >= 0 and (data := os.read(self._descriptor, CHUNK)):
            yield data

    def is_replaced(self) -> bool:
        """Whether another file has the name by now."""
        try:
            named = self._path.stat()
        except FileNotFoundError:
            return False
        mine = os.fstat(self._descriptor)
        return (named.st_dev, named.st_ino) != (mine.st_dev, mine.st_ino)

    def close(self) -> None:
        """Let it go; fine if none is open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

"""The log file of Podman's monitor, read line by line while it grows, and over its being replaced when it is full.

Podman's own API repeats lines, tears them and loses some across a rotation. The file does neither for who has it open:
each entry is `TIME STREAM F TEXT`, with `P` instead of `F` where the line goes on in the next entry of its stream (the
format of the Kubernetes runtimes, which conmon calls k8s-file). A full file is replaced by an empty one of its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runtime.growing_file import GrowingFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

FIELDS: Final = 4


class MonitorLog:
    """A place in a log."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet.

        Args:
            path: of the file that the monitor writes.
        """
        self._file = GrowingFile(path)
        self._rest = b""
        """An entry that was not there whole."""
        self._begun: dict[bytes, bytes] = {}
        """By stream: a line that goes on."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def news(self) -> Iterator[bytes]:
        """The lines that are whole now, and were not told yet.

        Raises:
            OSError: the file cannot be read.
        """
        if not self._file.open():
            return
        yield from self._read()
        while self._file.is_replaced():
            # What came between the last read and the replacement is read before the new file is.
            yield from self._read()
            self._file.close()
            self._rest = b""
            if not self._file.open():
                return
            yield from self._read()

    def last(self) -> Iterator[bytes]:
        """Lines that will never be whole, once nothing more comes."""
        yield from self._begun.values()
        self._begun.clear()

    def _read(self) -> Iterator[bytes]:
        for data in self._file.rest():
            *entries, self._rest = (self._rest + data).split(b"\n")
            for entry in entries:
                yield from self._told(entry)

    def _told(self, entry: bytes) -> Iterator[bytes]:
        fields = entry.split(b" ", FIELDS - 1)
        if len(fields) < FIELDS:
            return
        _, stream, flag, text = fields
        line = self._begun.pop(stream, b"") + text
        if flag.startswith(b"P"):
            self._begun[stream] = line
        else:
            yield line + b"\n"

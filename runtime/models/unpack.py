"""From a bundle into a model's preallocated files: what the manifest lists, piece by piece, each proven on the way.

One reader, in the archive's order. Pieces that are verified already are passed over: without being fetched, where the
archive is not compressed and the server gives ranges.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from runtime.models.archives import members, sound
from runtime.models.capacity import disk_errors
from runtime.models.hashing import Stopped
from runtime.models.layout import open_regular
from runtime.models.ranged import RangedFile
from runtime.models.sources import Interrupted, SourceError
from schemas.digests import Hasher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from runtime.models.archives import Member
    from runtime.models.pieces import FilePieces, Journal, Piece
    from runtime.models.sources import Source
    from schemas.ports import Ports, Stop

_WINDOW: Final = 4 * 2**20
_TICK: Final = 0.1
_LEAST_RATE: Final = 1024
"""As in `download`: bytes a second below which a transfer counts as silent."""

_ALLOWANCE: Final = 2**28
"""Bytes of other things (a readme, pictures) that may have to be unpacked and thrown away; a tenth more of the model's
size comes on top."""


@dataclass(slots=True)
class Outcome:
    """What came of a bundle."""

    error: SourceError | None = None
    """Why it was not read to its end."""
    wrong: tuple[str, ...] = ()
    """Files of which it has other content."""


class Unpack:
    """Takes a model's missing pieces out of bundles."""

    def __init__(
        self,
        base: Path,
        files: Sequence[FilePieces],
        *,
        journal: Journal,
        ports: Ports,
        stop: Stop,
        told: Callable[[FilePieces, Piece], None],
        stall: float,
        paused: Callable[[], bool],
    ) -> None:
        """Prepare.

        Args:
            base: folder of the preallocated files.
            files: all that may have missing pieces.
            journal: knows what is verified, and gets every further piece.
            ports: clock and threads.
            stop: ends the work early.
            told: told of each verified piece.
            stall: seconds of silence after which a transfer is given up.
            paused: whether nothing may be downloaded at the moment.
        """
        self._base = base
        self._files = {file.path: file for file in files}
        self._size = sum(file.size for file in files)
        self._journal = journal
        self._ports = ports
        self._stop = stop
        self._told = told
        self._stall = stall
        self._paused = paused
        self._done = set(journal.done)
        self._view = memoryview(bytearray(_WINDOW))

    @property
    def missing(self) -> list[str]:
        """Files with pieces that are not verified."""
        return [path for path, file in self._files.items() if self._lacks(file)]

    def run(self, source: Source, name: str, suffix: str) -> Outcome:
        """Read one bundle to its end, or until nothing is missing.

        Raises:
            Stopped: `stop` was set.
            NoSpace, DownloadFailed: the disk failed.
            OSError: progress cannot be saved.
        """
        outcome = Outcome()
        reading: list[RangedFile] = []
        over = threading.Event()

        def read() -> None:
            try:
                reading.append(RangedFile(source, name, clock=self._ports.clock, stop=self._stop))
                outcome.wrong = tuple(self._read(reading[0], suffix))
            except SourceError as error:
                outcome.error = error
            finally:
                over.set()
                for file in reading:
                    file.close()

        def look() -> None:
            while not over.wait(_TICK):
                for file in reading:
                    self._end_if_hopeless(file)

        self._ports.concurrency.map(lambda role: role(), [read, look], limit=2)
        if self._stop.is_set() and self.missing:
            raise Stopped
        return outcome

    def _end_if_hopeless(self, file: RangedFile) -> None:
        received = file.watch.received_over(self._stall)
        if self._stop.is_set() or self._paused():
            file.watch.abort("downloads are paused" if self._paused() else "the download was ended")
        elif received is not None and received < self._stall * _LEAST_RATE:
            file.watch.abort(f"sent {received} bytes in {self._stall:g} s")

    def _read(self, file: RangedFile, suffix: str) -> list[str]:
        """Files of which the archive has other content."""
        wrong: dict[str, bool] = {}
        for member in members(file, suffix, allowance=self._size + self._size // 10 + _ALLOWANCE):
            target = self._files.get(member.path)
            if target is None or not self._lacks(target):
                continue
            if member.size != target.size:
                wrong[target.path] = True
                continue
            self._take(member, target)
            wrong[target.path] = self._lacks(target)
            if not self.missing:
                break
        return [path for path, is_wrong in wrong.items() if is_wrong]

    def _lacks(self, file: FilePieces) -> bool:
        return any(piece.number not in self._done for piece in file.pieces)

    def _take(self, member: Member, file: FilePieces) -> None:
        with disk_errors(f"writing {file.path}"):
            target = open_regular(self._base, file.path, os.O_WRONLY)
        try:
            for piece in file.pieces:
                if piece.number in self._done:
                    continue
                if self._stop.is_set():
                    raise Stopped
                with sound():
                    member.content.seek(member.start + piece.offset)
                if self._copy(member, file, piece, target) == piece.hash:
                    self._done.add(piece.number)
                    self._journal.add(piece, self._base / file.path)
                    self._told(file, piece)
                    if self._journal.due():
                        self._journal.save()
        finally:
            with suppress(OSError):
                os.close(target)

    def _copy(self, member: Member, file: FilePieces, piece: Piece, target: int) -> bytes:
        """Read and write a piece; the hash of what came."""
        hasher, offset, left = Hasher(), piece.offset, piece.length
        while left:
            filled, wanted = 0, min(left, len(self._view))
            while filled < wanted:
                count = _some(member, self._view[filled:wanted])
                filled += count
            hasher.update(self._view[:filled])
            with disk_errors(f"writing {file.path}"):
                _write(target, self._view[:filled], offset)
            offset, left = offset + filled, left - filled
        return hasher.digest()


def _some(member: Member, view: memoryview) -> int:
    with sound():
        count = member.content.readinto(view)  # type: ignore[attr-defined]  # every reader of ours has it
    if not count:
        raise Interrupted(f"{member.path} ends early in it")
    return int(count)


def _write(target: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(target, data, offset)
        data = data[count:]
        offset += count

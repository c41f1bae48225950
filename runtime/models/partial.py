"""A model version on its way in: preallocated files, what of them is verified, and what the disk already knows.

Nothing in here believes a file because it is there. A piece counts when it was verified by this run, when the journal
lists it and the file's stat is as at the journal's clean end, or when it is hashed again now (I2).
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runtime.models import hashing
from runtime.models.capacity import allocated, preallocate
from runtime.models.filesystem import clone_range, enable_verity
from runtime.models.layout import READ_ONLY, open_regular
from runtime.models.pieces import Journal, load_journal
from runtime.models.records import Fingerprint
from schemas.digests import Hasher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from runtime.models.pieces import FilePieces, Piece
    from schemas.ports import Ports, Stop


@dataclass(frozen=True, slots=True)
class Known:
    """A piece that some file of this store is said to hold. It is hashed before it is believed."""

    base: Path
    path: str
    offset: int


class Partial:
    """The folder `partial/<hex>/` of one model."""

    def __init__(self, folder: Path, manifest: str, files: Sequence[FilePieces], ports: Ports) -> None:
        """Name the folder; nothing is touched yet.

        Args:
            folder: `partial/<hex>`.
            manifest: the manifest's digest.
            files: files whose content has to come in here (not those that an existing blob provides).
            ports: disk, clock, threads.
        """
        self.folder = folder
        self.base = folder / "files"
        self._manifest = manifest
        self._files = files
        self._ports = ports

    @property
    def journal_path(self) -> Path:
        """Where the journal lies."""
        return self.folder / "journal"

    def wanted(self) -> int:
        """Bytes of the disk that the files will take beyond what they have taken already."""
        total = 0
        for file in self._files:
            try:
                total += file.size - allocated((self.base / file.path).lstat())
            except OSError:
                total += file.size
        return total

    def resume(self, stop: Stop) -> frozenset[int]:
        """Pieces that an earlier run verified and that are still good.

        Raises:
            hashing.Stopped: `stop` was set.
            OSError: the journal cannot be read.
        """
        record = load_journal(self.journal_path, self._manifest)
        listed = record.numbers()
        believed: set[int] = set()
        doubtful: list[tuple[str, Piece]] = []
        for file in self._files:
            pieces = [piece for piece in file.pieces if piece.number in listed]
            if not pieces:
                continue
            seen = self._seen(file)
            if seen is not None and record.files.get(file.path) == seen:
                believed.update(piece.number for piece in pieces)
            elif seen is not None:
                doubtful.extend((file.path, piece) for piece in pieces)
        bad = hashing.bad_pieces(doubtful, self.base, concurrency=self._ports.concurrency, stop=stop)
        return frozenset(believed) | {piece.number for _, piece in doubtful if piece.number not in bad}

    def take(self, good: frozenset[int]) -> frozenset[int]:
        """Create the files and take their space. What of them is not good may be overwritten.

        Args:
            good: pieces that are already there.

        Returns:
            Those of them that still are: a file that had to be replaced begins anew.

        Raises:
            OSError: the disk is full, or something else is in the way.
        """
        folders = dict.fromkeys([self.base, *((self.base / file.path).parent for file in self._files)])
        for folder in folders:
            self._ports.files.make_folder(folder)
        lost: set[int] = set()
        for file in self._files:
            if not self._take(file, complete=all(piece.number in good for piece in file.pieces)):
                lost.update(piece.number for piece in file.pieces)
        for folder in folders:
            self._ports.files.sync_folder(folder)
        return good - lost

    def journal(self, good: frozenset[int]) -> Journal:
        """The journal, going on from what is good."""
        done = {piece.number: piece.length for file in self._files for piece in file.pieces if piece.number in good}
        size = sum(file.size for file in self._files)
        ports = self._ports
        return Journal(self.journal_path, self._manifest, done, size=size, files=ports.files, clock=ports.clock)

    def seal(self, path: str) -> None:
        """Make a completed file read-only, durably, and have the kernel guard its bytes where it can.

        Raises:
            OSError: the disk refused.
        """
        descriptor = open_regular(self.base, path)
        try:
            sealed = os.fstat(descriptor).st_mode & 0o777 == READ_ONLY
            if not sealed:
                os.fchmod(descriptor, READ_ONLY)
            enable_verity(descriptor)
            if sealed:
                return
        finally:
            os.close(descriptor)
        self._ports.files.sync_file(self.base / path)

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Stat of the files as they are now, for a journal's clean end."""
        found = {file.path: self._seen(file) for file in self._files}
        return {path: seen for path, seen in found.items() if seen is not None}

    def copy(
        self,
        work: Iterable[tuple[FilePieces, Piece]],
        known: Mapping[bytes, Sequence[Known]],
        journal: Journal,
        *,
        stop: Stop,
        told: Callable[[FilePieces, Piece], None],
    ) -> None:
        """Copy pieces that files of this store are known to hold, each verified on the way.

        Args:
            work: pieces that are missing.
            known: by a piece's hash, where it may be.
            journal: gets every verified piece.
            stop: ends the work early.
            told: told of each copied piece, from any thread.

        Raises:
            hashing.Stopped: `stop` was set.
            OSError: this file cannot be written. (One that cannot be read is passed over.)
        """

        def bring(file: FilePieces, piece: Piece, view: memoryview) -> bool:
            return any(self._copy(file, piece, place, view) for place in known[piece.hash])

        known_work = [(file, piece) for file, piece in work if piece.hash in known]
        self._bring(known_work, bring, journal, stop=stop, told=told, limit=hashing.processors())

    def fill(
        self,
        work: Iterable[tuple[FilePieces, Piece]],
        read: Callable[[FilePieces, Piece], bytes | None],
        journal: Journal,
        *,
        stop: Stop,
        told: Callable[[FilePieces, Piece], None],
        limit: int,
    ) -> None:
        """Write pieces that somebody has at hand.

        Args:
            work: pieces that are missing.
            read: a piece's bytes, hashed already; None for one that is not to be had.
            journal: gets every written piece.
            stop: ends the work early.
            told: told of each written piece, from any thread.
            limit: pieces in memory at once.

        Raises:
            hashing.Stopped: `stop` was set.
            OSError: this file cannot be written.
        """

        def bring(file: FilePieces, piece: Piece, _view: memoryview) -> bool:
            data = read(file, piece)
            if data is None:
                return False
            target = open_regular(self.base, file.path, os.O_WRONLY)
            try:
                _write_all(target, memoryview(data), piece.offset)
            finally:
                os.close(target)
            return True

        self._bring(list(work), bring, journal, stop=stop, told=told, limit=limit)

    def _bring(
        self,
        work: Sequence[tuple[FilePieces, Piece]],
        bring: Callable[[FilePieces, Piece, memoryview], bool],
        journal: Journal,
        *,
        stop: Stop,
        told: Callable[[FilePieces, Piece], None],
        limit: int,
    ) -> None:
        """Bring pieces side by side, and record those that came."""
        queue = iter(work)
        lock = threading.Lock()

        def strip(_number: int) -> None:
            view = memoryview(bytearray(hashing.WINDOW))
            while True:
                with lock:
                    item = next(queue, None)
                if item is None:
                    return
                if stop.is_set():
                    raise hashing.Stopped
                file, piece = item
                if bring(file, piece, view):
                    journal.add(piece, self.base / file.path)
                    told(file, piece)
                    if journal.due():
                        journal.save()

        self._ports.concurrency.map(strip, range(limit), limit=limit)

    def _copy(self, file: FilePieces, piece: Piece, place: Known, view: memoryview) -> bool:
        # For reading as well: blocks that are shared instead of copied are hashed where they came to lie.
        target = open_regular(self.base, file.path, os.O_RDWR)
        try:
            return _share_piece(target, piece, place, view) or _copy_piece(target, piece, place, view)
        finally:
            os.close(target)

    def _take(self, file: FilePieces, *, complete: bool) -> bool:
        """Make one file ready; False if nothing of what it held is left."""
        path = self.base / file.path
        kept = self._seen(file) is not None
        if complete and file.pieces and kept:
            return True
        # A name that is not a plain file of our own alone (a link to a blob, too) must never be written through.
        if path.is_symlink() or (path.exists() and (not path.is_file() or path.lstat().st_nlink != 1)):
            self._ports.files.remove(path)
            kept = False
        elif path.exists():
            path.chmod(0o600)
        descriptor = open_regular(self.base, file.path, os.O_RDWR | os.O_CREAT)
        try:
            preallocate(descriptor, file.size)
        finally:
            os.close(descriptor)
        return kept

    def _seen(self, file: FilePieces) -> Fingerprint | None:
        """The stat of a file that has its final size."""
        try:
            seen = Fingerprint.of((self.base / file.path).lstat())
        except OSError:
            return None
        return seen if seen is not None and seen.size == file.size else None


def _share_piece(target: int, piece: Piece, place: Known, view: memoryview) -> bool:
    """Share the blocks of what has the piece's hash with the file that needs it. False if it cannot be, or has not."""
    hasher = Hasher()
    try:
        source = open_regular(place.base, place.path)
        try:
            if not clone_range(source, place.offset, piece.length, target, piece.offset):
                return False
        finally:
            os.close(source)
        for _, data in hashing.read_piece(target, piece, view):
            hasher.update(data)
    except OSError:
        return False
    return bool(hasher.digest() == piece.hash)


def _copy_piece(target: int, piece: Piece, place: Known, view: memoryview) -> bool:
    """Copy from one file to another what has the piece's hash. False if it has not, or cannot be read."""
    hasher = Hasher()
    try:
        source = open_regular(place.base, place.path)
    except OSError:
        return False
    try:
        windows = hashing.read_piece(source, replace(piece, offset=place.offset), view)
        while (window := _next_window(windows)) is not None:
            offset, data = window
            hasher.update(data)
            _write_all(target, data, piece.offset + offset - place.offset)
    finally:
        os.close(source)
    return bool(hasher.digest() == piece.hash)


def _next_window(windows: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview] | None:
    """The next window; None at the end, and where reading fails (writing, which may fail too, is not in here)."""
    try:
        return next(windows, None)
    except OSError:
        return None


def _write_all(target: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(target, data, offset)
        data = data[count:]
        offset += count

"""Cold storage: models as Zstandard files, a frame for each piece, on whatever disk the node's owner names.

    <hex>/record        which frames there are; written last
    <hex>/<n>.zst       file n of the model, in the manifest's order; `zstd -d` gives the file itself
    .<hex>.new/         on its way in
    .<hex>.old/         on its way out

A model is in cold storage once its folder has its name, which it gets after every frame was read back and its content
hashed. A frame that went bad later is one piece that has to be fetched again, not a lost model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal

from runtime.models import hashing, zstd
from runtime.models.capacity import OVERHEAD, admit
from runtime.models.layout import READ_ONLY, hex_of, open_regular
from runtime.models.records import load, save
from schemas.base import Count, Digest, Frozen, Name, RelativePath, Version
from schemas.digests import raw_hash
from schemas.errors import DownloadFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from runtime.interfaces import Model
    from runtime.models.pieces import FilePieces, Piece
    from schemas.ports import Ports, Stop

_SIDE_BY_SIDE: Final = 4
"""Pieces compressed at once: each takes 33 MiB, so that the whole stays well below what a download may take."""

_NEW: Final = ".new"
_OLD: Final = ".old"


class ArchivedFile(Frozen):
    """One file in cold storage."""

    path: RelativePath
    frames: tuple[Count, ...]
    """Bytes of each piece's frame."""


class ArchiveRecord(Frozen):
    """One model in cold storage."""

    format_version: Literal["1"] = "1"
    manifest: Digest
    name: Name
    version: Version
    size: Count
    """Bytes of the model itself."""
    files: tuple[ArchivedFile, ...]
    """In the manifest's order."""

    @property
    def stored(self) -> int:
        """Bytes that it takes."""
        return sum(sum(file.frames) for file in self.files)


class SourceChanged(Exception):
    """A piece of the hot copy does not have its hash."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one piece's frame lies."""

    file: str
    offset: int
    length: int


class Archive:
    """The models in cold storage. Calls about one model must not overlap."""

    def __init__(self, root: Path, ports: Ports, *, reserve: int) -> None:
        """Name the folder; nothing is touched yet.

        Args:
            root: this network's own folder on the cold disk.
            ports: disk and threads.
            reserve: bytes of the disk that are left free.
        """
        self.root = root
        self._ports = ports
        self._files = ports.files
        self._reserve = reserve

    @property
    def side_by_side(self) -> int:
        """Pieces that are worked on at once."""
        return min(_SIDE_BY_SIDE, hashing.processors())

    def get(self, digest: str) -> ArchiveRecord | None:
        """One model's record, None where it is not in cold storage.

        Raises:
            OSError: it is there and cannot be read.
        """
        record = load(self._folder(digest) / "record", ArchiveRecord)
        return record if record is not None and record.manifest == digest else None

    def put(
        self,
        model: Model,
        files: Sequence[FilePieces],
        base: Path,
        *,
        told: Callable[[FilePieces, Piece], None],
        stop: Stop,
    ) -> None:
        """Copy a model into cold storage, and read all of it back before it counts.

        Args:
            model: the model.
            files: its files.
            base: the folder of the hot copy.
            told: told of each piece that is written.
            stop: ends the work early; nothing stays.

        Raises:
            NoSpace: the cold disk cannot hold it, were it incompressible; nothing was written.
            SourceChanged: the hot copy is not what it must be.
            DownloadFailed: what was written reads back as something else.
            hashing.Stopped: `stop` was set.
            OSError: a disk refused.
        """
        new = self._aside(model.digest, _NEW)
        self._files.make_folder(self.root)
        self._files.remove(new)
        wanted = sum(zstd.bound(piece.length) for file in files for piece in file.pieces) + OVERHEAD
        metadata = model.manifest.metadata
        admit(self.root, wanted, reserve=self._reserve, what=f"archiving {metadata.name}:{metadata.version}")
        self._files.make_folder(new, mode=0o700)
        record = ArchiveRecord(
            manifest=model.digest,
            name=metadata.name,
            version=metadata.version,
            size=model.manifest.size,
            files=tuple(
                ArchivedFile(path=file.path, frames=self._write(new / _name(number), file, base, told=told, stop=stop))
                for number, file in enumerate(files)
            ),
        )
        save(self._files, new / "record", record)
        if self.bad(record, files, new, stop=stop):
            raise DownloadFailed(f"the cold copy of {metadata.name}:{metadata.version} does not read back as written")
        self._files.remove(self._folder(model.digest))
        self._files.rename(new, self._folder(model.digest))

    def bad(
        self, record: ArchiveRecord, files: Sequence[FilePieces], folder: Path | None = None, *, stop: Stop
    ) -> frozenset[int]:
        """Numbers of the pieces that do not read back as what they must be.

        Args:
            record: the model's record.
            files: its files.
            folder: where it lies, if not at its place.
            stop: ends the work early.

        Raises:
            hashing.Stopped: `stop` was set.
        """
        place = folder or self._folder(record.manifest)
        work = [(file, piece) for file in files for piece in file.pieces]

        def look(item: tuple[FilePieces, Piece]) -> int | None:
            if stop.is_set():
                raise hashing.Stopped
            return None if self._read(place, record, files, *item) is not None else item[1].number

        found = self._ports.concurrency.map(look, work, limit=self.side_by_side)
        return frozenset(number for number in found if number is not None)

    def read(self, record: ArchiveRecord, files: Sequence[FilePieces], file: FilePieces, piece: Piece) -> bytes | None:
        """A piece's bytes, hashed; None where they are not what they must be, or cannot be read."""
        return self._read(self._folder(record.manifest), record, files, file, piece)

    def remove(self, digest: str) -> None:
        """Remove a model from cold storage. Fine if it is not there.

        Raises:
            OSError: the disk refused.
        """
        if self._folder(digest).exists():
            old = self._aside(digest, _OLD)
            self._files.remove(old)
            self._files.rename(self._folder(digest), old)
        for ending in (_NEW, _OLD):
            self._files.remove(self._aside(digest, ending))

    def unfinished(self) -> tuple[Path, ...]:
        """What an interrupted move left lying about; none of it is visible.

        Raises:
            OSError: it cannot be read.
        """
        try:
            there = sorted(self.root.iterdir())
        except FileNotFoundError:
            return ()
        return tuple(path for path in there if path.name.startswith(".") and path.suffix in (_NEW, _OLD))

    def list(self) -> dict[str, ArchiveRecord]:
        """What is in cold storage, by manifest digest, sorted.

        Raises:
            OSError: it cannot be read: what is in it is unknown, not absent.
        """
        try:
            names = sorted(path.name for path in self.root.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return {}
        found = ((name, self.get(f"blake3:{name}")) for name in names)
        return {f"blake3:{name}": record for name, record in found if record is not None}

    # --- inside -----------------------------------------------------------------------------------------------------

    def _folder(self, digest: str) -> Path:
        return self.root / hex_of(digest)

    def _aside(self, digest: str, ending: str) -> Path:
        return self.root / f".{hex_of(digest)}{ending}"

    def _write(
        self, target: Path, file: FilePieces, base: Path, *, told: Callable[[FilePieces, Piece], None], stop: Stop
    ) -> tuple[int, ...]:
        """Compress one file; the bytes of each frame."""

        def frame(piece: Piece) -> bytes:
            if stop.is_set():
                raise hashing.Stopped
            return zstd.compress(_verified(base, file.path, piece))

        lengths: list[int] = []
        count = self.side_by_side
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, READ_ONLY), "wb") as out:
            for start in range(0, len(file.pieces), count):
                batch = file.pieces[start : start + count]
                for piece, data in zip(batch, self._ports.concurrency.map(frame, batch, limit=count), strict=True):
                    out.write(data)
                    lengths.append(len(data))
                    told(file, piece)
        self._files.sync_file(target)
        # What is read back is to come from the disk.
        descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        return tuple(lengths)

    def _read(
        self, folder: Path, record: ArchiveRecord, files: Sequence[FilePieces], file: FilePieces, piece: Piece
    ) -> bytes | None:
        place = _place(record, files, file, piece)
        if place is None:
            return None
        try:
            descriptor = open_regular(folder, place.file)
            try:
                frame = os.pread(descriptor, place.length, place.offset)
            finally:
                os.close(descriptor)
            data = zstd.decompress(frame, piece.length)
        except (OSError, ValueError):
            return None
        return data if raw_hash(data) == piece.hash else None


def _name(number: int) -> str:
    return f"{number:05d}.zst"


def _place(record: ArchiveRecord, files: Sequence[FilePieces], file: FilePieces, piece: Piece) -> _Place | None:
    """Where a frame lies; None where the record does not fit the manifest."""
    number = next(index for index, item in enumerate(files) if item.path == file.path)
    if number >= len(record.files) or len(record.files[number].frames) != len(file.pieces):
        return None
    frames = record.files[number].frames
    index = piece.number - file.pieces[0].number
    return _Place(_name(number), list(accumulate(frames, initial=0))[index], frames[index])


def _verified(base: Path, path: str, piece: Piece) -> bytes:
    """A piece's bytes from the hot copy.

    Raises:
        SourceChanged: they do not have their hash, or cannot be read.
    """
    data = bytearray(piece.length)
    try:
        file = open_regular(base, path)
        try:
            view, done = memoryview(data), 0
            while done < piece.length:
                count = os.preadv(file, [view[done:]], piece.offset + done)
                if not count:
                    raise SourceChanged
                done += count
        finally:
            os.close(file)
    except OSError as error:
        raise SourceChanged from error
    if raw_hash(data) != piece.hash:
        raise SourceChanged
    return bytes(data)

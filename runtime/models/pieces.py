"""The pieces of a model, and the durable journal of those that are verified."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import StringConstraints

from runtime.models.records import Fingerprint, load, save
from schemas.base import Count, Digest, Frozen
from schemas.digests import digest_bytes
from schemas.errors import ModelCorrupt
from schemas.manifest import HASH_SIZE, PIECE_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from runtime.interfaces import Model
    from schemas.ports import Clock, Files

BATCH_BYTES: Final = 256 * 2**20
"""Verified bytes after which progress is made durable at the latest: large enough that fsync is rare, small enough to
lose."""

_BATCH_SHARE: Final = 256
"""Part of a model after which it is already, where the disk is quick: a crash then costs less than one percent."""

_REST: Final = 2
"""How often the time that saving took passes before a batch comes early: a slow disk is not made slower by it."""

BATCH_SECONDS: Final = 2.0
"""Time after which progress is made durable, on links too slow for `BATCH_BYTES`."""

_EMPTY: Final = digest_bytes(b"")


@dataclass(frozen=True, slots=True)
class Piece:
    """One verified unit of a file."""

    number: int
    """Position among all pieces of the model."""
    offset: int
    """First byte in its file."""
    length: int
    hash: bytes
    """BLAKE3 of exactly these bytes."""


@dataclass(frozen=True, slots=True)
class FilePieces:
    """One file of a model with its pieces."""

    path: str
    size: int
    blake3: str
    hashes: bytes
    """This file's part of the side file."""
    pieces: tuple[Piece, ...]


def split(model: Model) -> tuple[FilePieces, ...]:
    """A model's files with their pieces, in the manifest's order.

    Raises:
        ModelCorrupt: the side file is not the one that the manifest binds, or the two contradict each other.
    """
    manifest = model.manifest
    bound = manifest.spec.pieces.digest
    if len(model.pieces) != manifest.piece_count * HASH_SIZE or digest_bytes(model.pieces) != bound:
        raise ModelCorrupt(f"the pieces file of {_label(model)} is not the one that its manifest names")
    files = []
    number = 0
    for file in manifest.spec.files:
        hashes = model.pieces[number * HASH_SIZE : (number + file.pieces) * HASH_SIZE]
        pieces = tuple(
            Piece(
                number=number + index,
                offset=index * PIECE_SIZE,
                length=min(PIECE_SIZE, file.size - index * PIECE_SIZE),
                hash=hashes[index * HASH_SIZE : (index + 1) * HASH_SIZE],
            )
            for index in range(file.pieces)
        )
        number += file.pieces
        # A file of at most one piece has one digest, written twice; larger ones are told apart by their blob's name.
        whole = _EMPTY if not pieces else f"blake3:{pieces[0].hash.hex()}"
        if len(pieces) <= 1 and whole != file.blake3:
            raise ModelCorrupt(f"the manifest of {_label(model)} contradicts its pieces file about {file.path}")
        files.append(FilePieces(path=file.path, size=file.size, blake3=file.blake3, hashes=hashes, pieces=pieces))
    return tuple(files)


def _label(model: Model) -> str:
    metadata = model.manifest.metadata
    return f"{metadata.name}:{metadata.version}"


class JournalRecord(Frozen):
    """Which pieces of a model are verified and durable."""

    format_version: Literal["1"] = "1"
    manifest: Digest
    done: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]*$")]
    """Bit set, hex: bit n of the little-endian number is piece n."""
    verified: Count = 0
    """Bytes of those pieces."""
    files: dict[str, Fingerprint] = {}
    """Stat of the files at a clean end. A file that differs, or is not listed, is hashed before it is believed."""

    def numbers(self) -> frozenset[int]:
        """The verified pieces."""
        bits = int.from_bytes(bytes.fromhex(self.done), "little")
        return frozenset(number for number in range(bits.bit_length()) if bits >> number & 1)

    @classmethod
    def of(
        cls, manifest: str, lengths: Mapping[int, int], files: Mapping[str, Fingerprint] | None = None
    ) -> JournalRecord:
        """The record of verified pieces, given by number with their bytes."""
        done = bytearray()
        for number in lengths:
            done.extend(bytes(max(0, number // 8 + 1 - len(done))))
            done[number // 8] |= 1 << number % 8
        return cls(manifest=manifest, done=done.hex(), verified=sum(lengths.values()), files=dict(files or {}))


def load_journal(path: Path, manifest: str) -> JournalRecord:
    """The journal at `path`; an empty one if there is none, it is damaged, or it is another model's.

    Raises:
        OSError: it is there and cannot be read.
    """
    record = load(path, JournalRecord)
    return record if record is not None and record.manifest == manifest else JournalRecord.of(manifest, {})


class Journal:
    """Makes verified pieces durable in batches: first their data, then the record of them. Thread-safe.

    After a crash, what the journal lists is on the disk; what it does not list is fetched again: at most one batch.
    """

    def __init__(
        self, path: Path, manifest: str, done: Mapping[int, int], *, size: int, files: Files, clock: Clock
    ) -> None:
        """Go on from what is known.

        Args:
            path: where the record lies.
            manifest: digest of the model's manifest.
            done: bytes of every piece that is on the disk, by number.
            size: bytes of all files that are to come.
            files: the disk.
            clock: the time.
        """
        self._path = path
        self._manifest = manifest
        self._done = dict(done)
        self._files = files
        self._clock = clock
        self._fresh: dict[int, tuple[Path, int]] = {}
        self._fresh_bytes = 0
        self._batch = max(PIECE_SIZE, size // _BATCH_SHARE)
        self._saved_at = clock.monotonic()
        self._rests_until = self._saved_at
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._given_up = False

    @property
    def done(self) -> frozenset[int]:
        """Pieces that were verified, whether or not they are durable yet."""
        with self._lock:
            return frozenset(self._done) | frozenset(self._fresh)

    def give_up(self) -> None:
        """Writing failed: nobody knows what is on the disk, so nothing more is recorded."""
        self._given_up = True

    def add(self, piece: Piece, path: Path) -> None:
        """A piece was verified and written, not necessarily to the disk yet."""
        with self._lock:
            self._fresh[piece.number] = (path, piece.length)
            self._fresh_bytes += piece.length

    def due(self) -> bool:
        """Whether enough happened since the last batch."""
        with self._lock:
            now = self._clock.monotonic()
            overdue = self._fresh_bytes >= BATCH_BYTES or now - self._saved_at >= BATCH_SECONDS
            early = self._fresh_bytes >= self._batch and now >= self._rests_until
            return bool(self._fresh) and (overdue or early)

    def save(self, seen: Mapping[str, Fingerprint] | None = None, *, synced: bool = False) -> None:
        """Make everything added so far durable.

        Args:
            seen: stat of the files, at a clean end with no writer left; makes the record worth writing by itself.
            synced: the files are on the disk already.

        Raises:
            OSError: the disk refused. The pieces of the batch then stay unrecorded, and so does all that follows:
                after a failed fsync nobody knows what is on the disk.
        """
        with self._saving:
            with self._lock:
                batch = self._fresh
                self._saved_at = self._clock.monotonic()
                self._fresh_bytes = 0
                after = self._done | {number: length for number, (_, length) in batch.items()}
                self._fresh = {}
                if self._given_up or (not batch and seen is None):
                    return
            try:
                for path in () if synced else dict.fromkeys(path for path, _ in batch.values()):
                    self._files.sync_file(path)
                save(self._files, self._path, JournalRecord.of(self._manifest, after, seen))
            except BaseException:
                self.give_up()
                raise
            with self._lock:
                self._done = after
                now = self._clock.monotonic()
                self._rests_until = now + _REST * (now - self._saved_at)

"""Looking for bit rot in the background: one model after the other, the one first that was verified longest ago.

Pieces are read past the page cache, no faster than the owner allows, and compared with the hashes that were kept beside
the model's stamp. Where it was is remembered, so that a round goes on after a restart. The first bad piece takes the
stamp back: the next pass hashes the model on the disk, keeps what is good of it, and fetches the rest anew.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final, Literal

from runtime.interfaces import Scrubbed
from runtime.models import hashing
from runtime.models.bare import BareReader
from runtime.models.pieces import Piece
from runtime.models.records import load, save
from schemas.base import Count, Digest, Frozen, Time
from schemas.digests import Hasher
from schemas.manifest import HASH_SIZE, PIECE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from runtime.models.install import Rooms
    from runtime.models.stamps import Stamp
    from schemas.ports import Clock, Stop

_SAVE_BYTES: Final = 2**30
"""Bytes after which the place is remembered: what is read again after a crash, at most."""


class ScrubRecord(Frozen):
    """Where a round is."""

    format_version: Literal["1"] = "1"
    manifest: Digest
    verified_at: Time
    """Of the stamp: one that was renewed meanwhile begins anew."""
    done: Count
    """Pieces of the model that were found good."""


class Scrub:
    """The scrub of one store. For one thread."""

    def __init__(self, rooms: Rooms, *, rate: int, every: float) -> None:
        """Set the pace.

        Args:
            rooms: the store.
            rate: bytes a second, at most.
            every: seconds after which a verified model is due again.
        """
        self._rooms = rooms
        self._rate = rate
        self._every = timedelta(seconds=every)
        self._path = rooms.layout.root / "scrub.json"

    def run(self, stop: Stop) -> Scrubbed | None:
        """Look through the model that is due, as far as there is time.

        Args:
            stop: ends it at the next window; the place is remembered.

        Returns:
            What came of a model that was looked through, None where none is due or the time was up.

        Raises:
            OSError: the store cannot be read.
        """
        if stop.is_set():
            return None
        with self._rooms.lock:
            stamp = self._due(self._rooms.ports.clock.now())
            if stamp is None:
                return None
            work = list(self._pieces(stamp))
            begun = self._begun(stamp)
        pace = Pace(self._rate, self._rooms.ports.clock, stop)
        reader = BareReader(hashing.WINDOW)
        done, unsaved = begun, 0
        for path, piece in work[begun:]:
            verdict = self._look(stamp, path, piece, reader, pace)
            if verdict is None:
                self._save(stamp, done)
                return None
            if not verdict:
                return self._found(stamp, path, piece)
            done, unsaved = done + 1, unsaved + piece.length
            if unsaved >= _SAVE_BYTES:
                self._save(stamp, done)
                unsaved = 0
        return self._finish(stamp)

    def _due(self, now: datetime) -> Stamp | None:
        """The model that was verified longest ago, if that is long enough ago. Those in doubt are the planner's."""
        stamps = [stamp for stamp in self._rooms.stamps.stored() if not stamp.void]
        oldest = min(stamps, key=lambda stamp: (stamp.verified_at, stamp.manifest), default=None)
        return oldest if oldest is not None and oldest.verified_at + self._every <= now else None

    def _pieces(self, stamp: Stamp) -> Iterator[tuple[str, Piece]]:
        number = 0
        for file, hashes in self._rooms.stamps.pieces(stamp):
            for index in range(len(hashes) // HASH_SIZE):
                offset = index * PIECE_SIZE
                length = min(PIECE_SIZE, file.seen.size - offset)
                yield file.path, Piece(number, offset, length, hashes[index * HASH_SIZE : (index + 1) * HASH_SIZE])
                number += 1

    def _begun(self, stamp: Stamp) -> int:
        record = load(self._path, ScrubRecord)
        same = record is not None and (record.manifest, record.verified_at) == (stamp.manifest, stamp.verified_at)
        return record.done if record is not None and same else 0

    def _save(self, stamp: Stamp, done: int) -> None:
        if done and done != self._begun(stamp):
            record = ScrubRecord(manifest=stamp.manifest, verified_at=stamp.verified_at, done=done)
            save(self._rooms.ports.files, self._path, record)

    def _look(self, stamp: Stamp, path: str, piece: Piece, reader: BareReader, pace: Pace) -> bool | None:
        """Whether a piece is good; None where the time was up."""
        hasher = Hasher()
        try:
            with reader.open(self._rooms.stamps.folder(stamp), path) as file:
                for window in file.windows(piece):
                    hasher.update(window)
                    if not pace.spend(len(window)):
                        return None
        except OSError:
            return False
        return bool(hasher.digest() == piece.hash)

    def _found(self, stamp: Stamp, path: str, piece: Piece) -> Scrubbed | None:
        """A bad piece: the stamp no longer speaks. Not so where the model itself changed, or went, meanwhile."""
        with self._rooms.lock:
            now = self._rooms.stamps.load(stamp.manifest)
            if now != stamp or not self._rooms.stamps.intact(now):
                return None
            cause = f"the scrub found bad bytes in {path}, in the piece at byte {piece.offset}"
            self._rooms.stamps.void(now, cause)
        return Scrubbed(stamp.manifest, f"{stamp.name}:{stamp.version}", cause)

    def _finish(self, stamp: Stamp) -> Scrubbed | None:
        with self._rooms.lock:
            now = self._rooms.stamps.load(stamp.manifest)
            if now is None or now.void or now.verified_at != stamp.verified_at:
                return None
            at = self._rooms.ports.clock.now().replace(microsecond=0)
            self._rooms.stamps.save(now.model_copy(update={"verified_at": at}))
        return Scrubbed(stamp.manifest, f"{stamp.name}:{stamp.version}")


class Pace:
    """So many bytes a second, and no longer than until a stop."""

    def __init__(self, rate: int, clock: Clock, stop: Stop) -> None:
        self._rate = rate
        self._clock = clock
        self._stop = stop
        self._free_at = clock.monotonic()

    def spend(self, count: int) -> bool:
        """Wait until so many bytes are paid for. False where a stop was requested."""
        now = self._clock.monotonic()
        # Time that was not used is lost: after a pause there is no burst.
        self._free_at = max(self._free_at, now) + count / self._rate
        return not self._stop.wait(self._free_at - now)

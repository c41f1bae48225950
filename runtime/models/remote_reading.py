"""Makes a manifest of files that lie with a source: read once, several pieces at a time, hashed in order.

Nothing is kept but the heads of weights files, which are checked as those of a download are. Memory is bounded by the
pieces in flight, whatever the size of the files.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from runtime.models.formats import CODE, PICKLES, header_size
from runtime.models.manifest_builder import BuiltManifest, Describer, assemble, check_name, format_of
from runtime.models.ranged import RangedFile
from runtime.models.sources import Interrupted, SourceError, Watch, WholeOnly, some
from schemas.errors import DownloadFailed, Incompatible, ModelCorrupt
from schemas.manifest import PIECE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from runtime.models.manifest_builder import Told
    from runtime.models.sources import Session, Source
    from schemas.ports import Clock, Stop

_ATTEMPTS: Final = 6
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 60.0

_HEAD: Final = 2**28
"""Bytes of a file in which its header must end to be kept: as much as the longest may have."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as a hub lists it."""

    path: str
    size: int
    sha256: str = ""
    """SHA-256 that the hub publishes, hex; "" if it does not."""
    git_blob: str = ""
    """Its git object id (SHA-1 over a head and the content), hex; "" if it is none."""


class RemoteReading:
    """One read of a model that lies with a source."""

    def __init__(self, source: Source, *, connections: int, clock: Clock, stop: Stop, told: Told | None = None) -> None:
        """Prepare.

        Args:
            source: where the files lie.
            connections: requests at once.
            clock: the time.
            stop: ends the work early.
            told: watches.
        """
        self._source = source
        self._connections = connections
        self._clock = clock
        self._stop = stop
        self._told = told
        self._own = threading.local()
        self._sessions: list[Session] = []
        self._ended = False

    def measure(self, path: str) -> int:
        """Bytes of a file that nobody listed.

        Raises:
            DownloadFailed: the source did not say.
        """
        file = RangedFile(self._source, path, clock=self._clock, stop=self._stop)
        with file, self._errors(path):
            return file.size

    def build(
        self, files: Sequence[RemoteFile], heads: Path, *, skipped: Sequence[str] = (), whole: bool = False
    ) -> BuiltManifest:
        """Read the files and describe them.

        Args:
            files: what the model consists of.
            heads: an empty folder; gets sparse files with the heads of the weights, for `formats.check_content`.
            skipped: what was left out, for people.
            whole: keep the files themselves there, not only their heads.

        Raises:
            Incompatible: there is nothing to serve, a file runs code when it is loaded, or a name is not portable.
            ModelCorrupt: a file's bytes are not those whose digest the hub publishes.
            DownloadFailed: the source did not deliver.
        """
        ordered = sorted(files, key=lambda file: check_name(file.path))
        kind = format_of([file.path for file in ordered])
        if len({file.path for file in ordered}) != len(ordered):
            raise Incompatible("a file is listed twice")
        try:
            with ThreadPoolExecutor(self._connections) as pool, self._ending():
                return assemble(kind, (self._describe(file, heads, pool, whole=whole) for file in ordered), skipped)
        finally:
            for session in self._sessions:
                session.drop()

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Have the pool's threads end soon where there is nobody left to wait for them."""
        try:
            yield
        finally:
            self._ended = True

    def _describe(
        self, file: RemoteFile, heads: Path, pool: ThreadPoolExecutor, *, whole: bool
    ) -> tuple[dict[str, Any], bytes]:
        blob = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
        target = heads / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
        kept = 0
        with Describer(file.path) as describer, self._errors(file.path):
            for piece in self._pieces(file, pool):
                describer.add(memoryview(piece))
                if file.git_blob:
                    blob.update(piece)
                if whole:
                    _append(target, piece)
                elif kept == describer.size - len(piece) and kept < _HEAD:
                    kept = _keep(heads, file.path, piece)
                if self._told is not None:
                    self._told(file.path, describer.size, file.size)
            os.truncate(target, file.size)
            found = (describer.sha256 if file.sha256 else "", blob.hexdigest() if file.git_blob else "")
            if found != (file.sha256, file.git_blob):
                raise ModelCorrupt(
                    f"{self._source.shown}: the bytes of {file.path} are not those whose digest the hub publishes",
                    hint="do not approve this model: the hub, or somebody on the way to it, changed the file",
                )
            return describer.entry(), describer.hashes

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        try:
            yield
        except SourceError as error:
            raise DownloadFailed(f"{self._source.shown}: {path}: {error}") from error

    def _pieces(self, file: RemoteFile, pool: ThreadPoolExecutor) -> Iterator[bytearray]:
        """A file's pieces in order, the next ones on their way meanwhile."""
        starts = deque(range(0, file.size, PIECE_SIZE))
        coming: deque[Any] = deque()
        first = True
        try:
            while starts or coming:
                while starts and len(coming) < (1 if first else self._connections):
                    start = starts.popleft()
                    coming.append(pool.submit(self._piece, file, start, min(PIECE_SIZE, file.size - start)))
                yield coming.popleft().result()
                first = False
        except WholeOnly:
            if not first:
                raise
            yield from self._in_order(file)
        finally:
            for task in coming:
                task.cancel()

    def _in_order(self, file: RemoteFile) -> Iterator[bytearray]:
        """The same from a server that sends whole files only."""
        with RangedFile(self._source, file.path, clock=self._clock, stop=self._stop) as stream:
            for start in range(0, file.size, PIECE_SIZE):
                yield bytearray(stream.read(min(PIECE_SIZE, file.size - start)))

    def _piece(self, file: RemoteFile, start: int, length: int) -> bytearray:
        """One piece, however often it takes. Runs in a thread of the pool."""
        session = getattr(self._own, "session", None)
        if session is None:
            session = self._own.session = self._source.session()
            self._sessions.append(session)
        data = bytearray(length)
        view, filled, failures = memoryview(data), 0, 0
        while filled < length:
            try:
                session.open(
                    file.path, file.size, start + filled, length - filled, whole=False, watch=Watch(self._clock)
                )
                while filled < length:
                    if self._ended or self._stop.is_set():
                        raise DownloadFailed(f"reading {self._source.shown} was stopped")
                    filled, failures = filled + some(session, view[filled:]), 0
                session.finish()
            except Interrupted as error:
                session.drop()
                failures += 1
                pause = max(_FIRST_PAUSE * 2 ** (failures - 1), error.retry_after or 0.0)
                if failures >= _ATTEMPTS or pause > _LONGEST_PAUSE or self._stop.wait(pause):
                    raise
            except SourceError:
                session.drop()
                raise
        return data


def _append(target: Path, piece: bytearray) -> int:
    with target.open("ab") as file:
        file.write(piece)
        return file.tell()


def _keep(heads: Path, path: str, piece: bytearray) -> int:
    """Append to the head of a file, and cut it where it is whole; its size then."""
    target = heads / path
    size = _append(target, piece)
    end = header_size(heads, path, size)
    if end is not None and end < size:
        os.truncate(target, end)
        return end
    return size


def left_out(path: str) -> bool:
    """Whether a hub's file does not belong to what nodes serve: hidden, or a kind of file that they refuse."""
    extension = os.path.basename(path).rpartition(".")[2].lower()  # noqa: PTH119 - not a path of this machine
    return any(part.startswith(".") for part in path.split("/")) or extension in PICKLES | CODE

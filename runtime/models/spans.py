"""Models in one large file: read out of it as from any other source, and written into it without a copy beside it.

`SpanSource` gives files that lie, one after the other, in an archive. `place` is the way in: it fetches the files of a
model straight to their places in an archive, every piece verified, with the same engine that fills a node's store.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runtime.models.download import Download
from runtime.models.health import Health, SourceState
from runtime.models.pieces import FilePieces, Journal, Piece, split
from runtime.models.sources import FolderSource, Interrupted, Refused, Unsuitable, WrongContent, open_source, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from runtime.archive import Span
    from runtime.interfaces import Model
    from runtime.models.sources import Session, Source, Watch
    from schemas.node import SourcePolicy
    from schemas.ports import Ports


# --- out of an archive --------------------------------------------------------------------------------------------


class SpanSource:
    """Files of a model in an open archive. Not trusted, like any source: what it gives is hashed."""

    def __init__(self, name: str, file: int, places: Mapping[str, Span]) -> None:
        """Describe the source.

        Args:
            name: the archive, for people.
            file: its descriptor, read with `pread`; the caller keeps it open.
            places: by path of the model's file.
        """
        self.shown = name
        self._file = file
        self._places = places

    def session(self) -> SpanSession:
        """A reader."""
        return SpanSession(self._file, self._places)


class SpanSession:
    """Reads from an archive."""

    def __init__(self, file: int, places: Mapping[str, Span]) -> None:
        self._file = file
        self._places = places
        self._position = self._end = 0
        self._watch: Watch | None = None

    def open(self, path: str, size: int, start: int, length: int, *, whole: bool, watch: Watch) -> None:  # noqa: ARG002
        """See `Session.open`."""
        place = self._places.get(path)
        if place is None:
            raise Unsuitable(f"{path} is not in it")
        if place.size != size:
            raise WrongContent(f"{path} has {place.size} bytes where the manifest has {size}")
        self._position = place.offset + start
        self._end = self._position + length
        self._watch = watch

    def readinto(self, view: memoryview) -> int:
        """See `Session.readinto`."""
        if self._watch is None:
            return 0
        if self._watch.cause:
            raise Interrupted(self._watch.cause)
        try:
            count = os.preadv(self._file, [view[: self._end - self._position]], self._position)
        except OSError as error:
            raise Interrupted(error.strerror or str(error)) from error
        self._position += count
        self._watch.receive(count)
        return count

    def measure(self, path: str, watch: Watch) -> int:  # noqa: ARG002 - a disk is not waited for
        """See `Session.measure`."""
        if path not in self._places:
            raise Unsuitable(f"{path} is not in it")
        return self._places[path].size

    def finish(self) -> None:
        """See `Session.finish`."""

    def drop(self) -> None:
        """See `Session.drop`."""


# --- into an archive ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the model, as part of the archive."""

    path: str
    place: Span


class _Shifted:
    """A source as it looks to somebody who fills an archive: asked for bytes of the archive, it gives the model's."""

    def __init__(self, source: Source, files: Sequence[_File]) -> None:
        self.shown = source.shown
        self._source = source
        self._files = files

    def session(self) -> _ShiftedSession:
        """A reader."""
        return _ShiftedSession(self._source.session(), self._files)


class _ShiftedSession:
    """One reader of a shifted source. A piece never crosses from one file into the next."""

    def __init__(self, session: Session, files: Sequence[_File]) -> None:
        self._files = files
        self._session = session
        self.readinto: Callable[[memoryview], int] = session.readinto
        self.measure: Callable[[str, Watch], int] = session.measure
        self.finish: Callable[[], None] = session.finish
        self.drop: Callable[[], None] = session.drop

    def open(self, path: str, size: int, start: int, length: int, *, whole: bool, watch: Watch) -> None:  # noqa: ARG002
        """See `Session.open`."""
        file = next(file for file in self._files if file.place.offset <= start < file.place.offset + file.place.size)
        begin = start - file.place.offset
        self._session.open(file.path, file.place.size, begin, length, whole=whole, watch=watch)


def place(
    model: Model,
    archive: Path,
    places: Mapping[str, Span],
    *,
    folder: Path | None,
    sources: Sequence[str],
    policy: SourcePolicy,
    connections: int,
    stall: float,
    ports: Ports,
    told: Callable[[str, int], None],
) -> None:
    """Fetch files of a model to their places in an archive, which has its full size already.

    Args:
        model: the model.
        archive: the file.
        places: by path: the files that are wanted.
        folder: a folder of this machine that may hold the model, asked first.
        sources: base addresses.
        policy: what may be fetched.
        connections: requests at once.
        stall: seconds of silence after which a source is given up.
        ports: clock, chance, threads, disk.
        told: the model's name and the bytes that are verified.

    Raises:
        DownloadFailed: no source has it all, or stopped.
        ModelCorrupt: the sources answer with other bytes than the manifest's, or it contradicts itself.
        NoSpace: the disk is full.
    """
    label = f"{model.manifest.metadata.name}:{model.manifest.metadata.version}"
    wanted = [file for file in split(model) if file.path in places and file.size]
    files = [_File(file.path, places[file.path]) for file in wanted]
    pieces = [
        replace(piece, offset=places[file.path].offset + piece.offset) for file in wanted for piece in file.pieces
    ]
    whole = FilePieces(archive.name, archive.stat().st_size, "", b"", tuple(pieces))
    states = _states(files, folder, sources, policy, stall, ports)
    Download(
        label,
        archive.parent,
        [(whole, pieces)],
        health=Health(states, clock=ports.clock.monotonic, jitter=ports.randomness.uniform),
        journal=_Unrecorded(archive, model.digest, {}, size=whole.size, files=ports.files, clock=ports.clock),
        ports=ports,
        stop=ports.stop,
        told=lambda _path, done: told(label, done),
        connections=connections,
        stall=stall,
    ).run()


class _Unrecorded(Journal):
    """An archive is made in one go: there is nothing to come back to."""

    def add(self, piece: Piece, path: Path) -> None:
        """Forget it."""


def _states(
    files: Sequence[_File],
    folder: Path | None,
    sources: Sequence[str],
    policy: SourcePolicy,
    stall: float,
    ports: Ports,
) -> list[SourceState]:
    states = []
    if folder is not None:
        near = FolderSource(folder)
        states.append(SourceState(source=_Shifted(near, files), shown=near.shown, fallback=False))
    for address in dict.fromkeys(sources):
        # Where the model lies on this machine, others are asked only for what is bad of it.
        state = SourceState(source=None, shown=shown(address), fallback=folder is not None)
        try:
            state.source = _Shifted(open_source(address, policy, stall=stall, clock=ports.clock), files)
        except Refused as error:
            state.dropped, state.refused = str(error), True
        states.append(state)
    return states

"""The piece engine: fetches pieces in parallel from whoever gives them best, and proves each before it counts.

A worker reads a window of a piece straight into its one buffer, hashes it there while it is still in the processor's
cache, and writes it in place into the preallocated file. When the whole piece has its hash, it is handed to the
journal, which makes it durable in batches; until then nothing says that the bytes are good, and a piece that turned
out bad is simply overwritten by the next attempt. So memory is bounded by workers times one window.

All decisions are taken under one lock (`_turn`), all waiting for bytes happens outside of it. A housekeeper beside
the workers makes progress durable, ends transfers that stall, and passes a stop request on.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from runtime.models.capacity import disk_errors
from runtime.models.layout import open_regular
from runtime.models.sources import Interrupted, SourceError, Watch, some
from schemas.digests import Hasher
from schemas.errors import DownloadFailed, ModelCorrupt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from runtime.models.health import Health, SourceState
    from runtime.models.pieces import FilePieces, Journal, Piece
    from runtime.models.sources import Session
    from schemas.ports import Ports, Stop

WINDOW: Final = 2**20
"""Bytes that a worker reads before it hashes and writes them. Measured against nginx on loopback with two cores: the
window stays in a core's own cache, a whole piece does not, and with less than this the interpreter shows. Mapping the
file and receiving into the map costs a fifth more: its pages are cleared before they are filled."""

_TICK: Final = 0.1
"""Seconds between two looks of the housekeeper."""

_LEAST_RATE: Final = 1024
"""Bytes a second below which a transfer counts as silent: a slow modem gives several times as much, and a source that
drips a byte now and then could otherwise hold a download for ever."""

_MIN_GAIN: Final = 2**18
"""Bytes that must have come before a broken transfer is continued where it broke, instead of counting as a failure."""

_SLOWER: Final = "another source is faster"
_ENDED: Final = "the download was ended"


@dataclass(slots=True, eq=False)
class Todo:
    """A file with pieces to fetch."""

    file: FilePieces
    pending: deque[Piece]
    """Pieces that nobody is fetching now."""
    secured: int
    """Bytes of the file that are verified."""
    unfinished: int = 0
    """Pieces pending or being fetched."""
    descriptor: int | None = None
    wrong: dict[int, dict[SourceState, int]] = field(default_factory=dict)
    """For each piece of which wrong bytes came: from whom, and how often."""
    avoid: dict[int, set[SourceState]] = field(default_factory=dict)
    """For a piece: sources that were too slow with it."""


@dataclass(slots=True, eq=False)
class _Job:
    todo: Todo
    piece: Piece
    state: SourceState
    worker: int
    watch: Watch


class Download:
    """Fetches the missing pieces of one model. Used once."""

    def __init__(
        self,
        label: str,
        base: Path,
        files: Sequence[tuple[FilePieces, Sequence[Piece]]],
        *,
        health: Health,
        journal: Journal,
        ports: Ports,
        stop: Stop,
        told: Callable[[str, int], None],
        connections: int,
        stall: float,
        paused: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepare.

        Args:
            label: the model, for people.
            base: folder of the preallocated files.
            files: files with the pieces of each that are missing.
            health: the sources.
            journal: gets every verified piece.
            ports: clock and threads.
            stop: ends the download early.
            told: path and verified bytes of a file, at each verified piece.
            connections: workers.
            stall: seconds of silence after which a transfer is given up.
            paused: whether nothing may be downloaded at the moment; ends the download.
        """
        self._paused = paused
        self._label = label
        self._base = base
        self._health = health
        self._journal = journal
        self._ports = ports
        self._stop = stop
        self._told = told
        self._stall = stall
        self._turn = threading.Condition()
        self._files = [_todo(file, missing) for file, missing in files if missing]
        self._open = {todo.file.path: todo for todo in self._files}
        self._unfinished = sum(todo.unfinished for todo in self._files)
        self._workers = min(connections, self._unfinished)
        self._running = self._workers
        self._idle = 0
        self._jobs: dict[int, _Job] = {}
        self._failure: BaseException | None = None
        self._cancelled = False

    def run(self) -> None:
        """Fetch everything, or fail. What the journal was given last is left to the caller to save.

        Raises:
            DownloadFailed: stopped, or a piece that no source gives now.
            ModelCorrupt: a piece of which all sources have other bytes.
            NoSpace: the disk is full.
        """
        if not self._unfinished:
            return
        roles: list[Callable[[], None]] = [partial(self._work, number) for number in range(self._workers)]
        roles.append(self._keep_house)
        try:
            self._ports.concurrency.map(lambda role: role(), roles, limit=len(roles))
        finally:
            for todo in self._files:
                _close(todo)
        if self._failure is not None:
            raise self._failure
        if self._unfinished:
            raise DownloadFailed(f"the download of {self._label} was stopped; what is verified is kept")

    # --- a worker -------------------------------------------------------------------------------------------------

    def _work(self, worker: int) -> None:
        view = memoryview(bytearray(min(WINDOW, max(todo.file.size for todo in self._files))))
        sessions: dict[SourceState, Session] = {}
        try:
            while (job := self._next(worker)) is not None:
                self._attempt(job, sessions, view)
        except BaseException as error:  # noqa: BLE001 - raised again by `run`, once all workers have ended
            self._fail(error)
        finally:
            for session in sessions.values():
                session.drop()
            with self._turn:
                self._running -= 1
                self._turn.notify_all()

    def _attempt(self, job: _Job, sessions: dict[SourceState, Session], view: memoryview) -> None:
        """Fetch one piece and tell what came of it."""
        if job.state not in sessions and job.state.source is not None:
            sessions[job.state] = job.state.source.session()
        session = sessions[job.state]
        try:
            right = self._transfer(job, session, view) == job.piece.hash
        except SourceError as error:
            session.drop()
            with self._turn:
                self._failed(job, error)
        except BaseException:
            self._journal.give_up()
            session.drop()
            with self._turn:
                self._return(job)
            raise
        else:
            with self._turn:
                self._delivered(job, right=right)

    def _transfer(self, job: _Job, session: Session, view: memoryview) -> bytes:
        """Read, hash and write a piece; a transfer that breaks after some gain is continued.

        Returns:
            The hash of what came.
        """
        hasher = Hasher()
        done = filled = mark = 0
        while done < job.piece.length:
            try:
                self._ask(job, session, done + filled)
                while done < job.piece.length:
                    wanted = min(len(view), job.piece.length - done)
                    while filled < wanted:
                        filled += some(session, view[filled:wanted])
                    hasher.update(view[:wanted])
                    self._write(job.todo, view[:wanted], job.piece.offset + done)
                    done, filled = done + wanted, 0
            except Interrupted:
                if done + filled < mark + _MIN_GAIN or job.watch.cause:
                    raise
                mark = done + filled
                session.drop()
        session.finish()
        return hasher.digest()

    def _ask(self, job: _Job, session: Session, skip: int) -> None:
        session.open(
            job.todo.file.path,
            job.todo.file.size,
            job.piece.offset + skip,
            job.piece.length - skip,
            whole=job.state.whole_only,
            watch=job.watch,
        )

    def _write(self, todo: Todo, data: memoryview, offset: int) -> None:
        with disk_errors(f"writing {self._label}/{todo.file.path}"):
            if todo.descriptor is None:
                with self._turn:
                    if todo.descriptor is None:
                        todo.descriptor = open_regular(self._base, todo.file.path, os.O_WRONLY)
            while data:
                count = os.pwrite(todo.descriptor, data, offset)
                data = data[count:]
                offset += count

    # --- what came of it; called with the lock held ------------------------------------------------------------------

    def _delivered(self, job: _Job, *, right: bool) -> None:
        if not right:
            counts = job.todo.wrong.setdefault(job.piece.number, {})
            counts[job.state] = counts.get(job.state, 0) + 1
            self._health.sent_wrong(job.state, job.todo.file.path)
            self._return(job)
            return
        self._forget(job)
        seconds = self._ports.clock.monotonic() - job.watch.started
        self._health.delivered(job.state, received=job.watch.received, seconds=seconds)
        todo = job.todo
        todo.secured += job.piece.length
        todo.unfinished -= 1
        self._unfinished -= 1
        self._journal.add(job.piece, self._base / todo.file.path)
        self._told(todo.file.path, todo.secured)
        if not todo.unfinished:
            _close(todo)
        if not self._unfinished or self._journal.due():
            self._turn.notify_all()

    def _failed(self, job: _Job, error: SourceError) -> None:
        if job.watch.cause == _SLOWER:
            job.todo.avoid.setdefault(job.piece.number, set()).add(job.state)
            seconds = self._ports.clock.monotonic() - job.watch.started
            self._health.measured(job.state, received=job.watch.received, seconds=seconds)
        elif job.watch.cause != _ENDED:
            stalled = bool(job.watch.cause) or isinstance(error.__cause__, TimeoutError)
            if job.watch.cause:
                error = Interrupted(job.watch.cause)  # what the reader saw is only how the end looked from there
            self._health.failed(job.state, job.todo.file.path, error, started=job.watch.started, stalled=stalled)
        self._return(job)

    def _return(self, job: _Job) -> None:
        """Put a piece back for somebody to fetch."""
        self._forget(job)
        job.todo.pending.appendleft(job.piece)
        self._open[job.todo.file.path] = job.todo
        self._turn.notify_all()

    def _forget(self, job: _Job) -> None:
        del self._jobs[job.worker]
        job.state.active -= 1
        # A source of whole files stays with its reader as long as the reader has more of the file to read.
        if job.state.reading.get(job.todo.file.path) == job.worker and not job.todo.pending:
            del job.state.reading[job.todo.file.path]
            self._turn.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._turn:
            self._failure = self._failure or error
            self._end_all()

    def _end_all(self) -> None:
        for job in self._jobs.values():
            job.watch.abort(_ENDED)
        self._turn.notify_all()

    # --- what next --------------------------------------------------------------------------------------------------

    def _next(self, worker: int) -> _Job | None:
        """The next piece for a worker; waits while there is none for the moment. None: be done."""
        with self._turn:
            while self._unfinished and self._failure is None and not self._stop.is_set():
                job = self._pick(worker)
                if job is not None:
                    return job
                if self._failure is None:
                    pause = self._health.wakes_at() - self._ports.clock.monotonic()
                    self._idle += 1
                    self._turn.wait(min(max(pause, 0.0), 1.0))
                    self._idle -= 1
            return None

    def _pick(self, worker: int) -> _Job | None:
        for todo in self._in_turn(worker):
            for piece in todo.pending:
                acceptable = self._acceptable(todo, piece)
                if not acceptable:
                    self._failure = self._exhausted(todo, piece)
                    self._end_all()
                    return None
                path, parts = todo.file.path, len(todo.file.pieces)
                state = self._health.choose(acceptable, path, worker=worker, parts=parts)
                if state is not None:
                    return self._take(todo, piece, state, worker)
                if piece.number not in todo.wrong and piece.number not in todo.avoid:
                    break  # the file's other pieces fare no better
        return None

    def _in_turn(self, worker: int) -> Iterator[Todo]:
        """Files with pending pieces: those that this worker reads from their beginning on come first."""
        for state in self._health.states:
            for path, reader in state.reading.items():
                if reader == worker and path in self._open:
                    yield self._open[path]
        yield from self._open.values()

    def _take(self, todo: Todo, piece: Piece, state: SourceState, worker: int) -> _Job:
        todo.pending.remove(piece)
        if not todo.pending:
            del self._open[todo.file.path]
        state.active += 1
        if state.whole_only and len(todo.file.pieces) > 1:
            state.reading[todo.file.path] = worker
        job = _Job(todo, piece, state, worker, Watch(self._ports.clock))
        self._jobs[worker] = job
        return job

    def _acceptable(self, todo: Todo, piece: Piece) -> list[SourceState]:
        """Sources that may be asked for a piece, now or later.

        One that sent wrong bytes of it is asked again only if there is no other, and only once: the error may have
        happened on the way.
        """
        possible = self._health.possible(todo.file.path)
        wrong = todo.wrong.get(piece.number)
        if wrong is not None:
            possible = [s for s in possible if s not in wrong] or [s for s in possible if wrong[s] < 2]  # noqa: PLR2004
        avoided = todo.avoid.get(piece.number, ())
        return [state for state in possible if state not in avoided] or possible

    def _exhausted(self, todo: Todo, piece: Piece) -> DownloadFailed | ModelCorrupt:
        path = todo.file.path
        report = self._health.report(path)
        allowed = [state for state in self._health.states if not state.refused]
        wrong = todo.wrong.get(piece.number, {})
        if allowed and all(state in wrong or path in state.differs for state in allowed):
            return ModelCorrupt(
                f"no source has the bytes of {self._label}/{path} that its manifest names: {report}",
                hint="the manifest or the sources are wrong; publish a corrected one",
            )
        return DownloadFailed(f"no source gives {self._label}/{path}: {report}")

    # --- the housekeeper ----------------------------------------------------------------------------------------------

    def _keep_house(self) -> None:
        try:
            while self._look():
                if self._journal.due():
                    with disk_errors(f"saving the progress of {self._label}"):
                        self._journal.save()
        except BaseException as error:  # noqa: BLE001 - raised again by `run`, once all workers have ended
            self._fail(error)

    def _look(self) -> bool:
        """Wait a moment, and end what must end; False once all workers have."""
        paused = self._paused()
        with self._turn:
            if paused and self._failure is None:
                self._failure = DownloadFailed(f"the download of {self._label} is paused by sources.bandwidth")
                self._end_all()
            if self._running:
                self._turn.wait(_TICK)
            if self._stop.is_set() and not self._cancelled:
                self._cancelled = True
                self._end_all()
            for job in self._jobs.values():
                self._end_if_hopeless(job)
            return self._running > 0

    def _end_if_hopeless(self, job: _Job) -> None:
        received = job.watch.received_over(self._stall)
        if received is not None and received < self._stall * _LEAST_RATE:
            job.watch.abort(f"sent {received} bytes in {self._stall:g} s")
        elif self._idle and not self._open and self._is_slower(job):
            job.watch.abort(_SLOWER)

    def _is_slower(self, job: _Job) -> bool:
        """Whether another source would probably have sent the whole piece long before this one sends the rest."""
        others = [s.rate for s in self._acceptable(job.todo, job.piece) if s is not job.state and not s.whole_only]
        best = max(others, default=0.0)
        elapsed = self._ports.clock.monotonic() - job.watch.started
        if not best or elapsed < 1:
            return False
        left = (
            (job.piece.length - job.watch.received) * elapsed / job.watch.received if job.watch.received else math.inf
        )
        return left > 2 * job.piece.length / best + 1


def _todo(file: FilePieces, missing: Sequence[Piece]) -> Todo:
    fetched = sum(piece.length for piece in missing)
    return Todo(file=file, pending=deque(missing), secured=file.size - fetched, unfinished=len(missing))


def _close(todo: Todo) -> None:
    if todo.descriptor is not None:
        os.close(todo.descriptor)
        todo.descriptor = None

"""`run/control.sock`: where a daemon is asked for what changes its node.

Connections are served by threads; they record what an operator wants, as the command would without a daemon, and wake
the one thread that decides. Whoever asked for a pass hears what happens in it, and how it ended.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from reconciler import progress
from runtime.connection import peer
from schemas.control import (
    PASSES,
    REQUEST_LIMIT,
    Apply,
    ControlDone,
    ControlFailed,
    ControlRequest,
    PassReport,
    Reconcile,
    Validate,
)
from schemas.control import Reload as ReloadConfig
from schemas.errors import PeerRefused, ReconcileError, StalePlan, UsageError
from schemas.failure import failure_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from reconciler.executor import Outcome
    from reconciler.loop import PassResult
    from reconciler.watch import Wake
    from schemas.control import Question
    from schemas.plan import Action, Plan

LOG = logging.getLogger("reconcile")

CONTROL_SOCKET: Final = "control.sock"
MOST_CONNECTIONS: Final = 32
"""Callers at once; a person and some hooks are a handful."""
REQUEST_SECONDS: Final = 10.0
"""Within which a caller has said what it wants."""
WRITE_SECONDS: Final = 30.0
"""Within which a caller takes a line; the pass does not wait for it."""
KEPT_EVENTS: Final = 4096
"""Lines that wait for a slow caller; further ones are dropped, the last one never is."""
PROGRESS_SECONDS: Final = 0.2
"""Between two lines about the bytes of one thing: what an eye can follow."""

_LAST: Final = ("done", "failed")


class Asked:
    """One question that waits for a pass."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self._lines: queue.SimpleQueue[progress.Event] = queue.SimpleQueue()

    def tell(self, event: progress.Event) -> None:
        """Pass something on; never waits."""
        if event["event"] in _LAST or self._lines.qsize() < KEPT_EVENTS:
            self._lines.put(event)

    def next(self) -> progress.Event:
        """What to pass on next; waits for it."""
        return self._lines.get()


class Audience:
    """Those who asked and wait. A reporter of passes: what happens is told to all of them, and to a display."""

    def __init__(
        self,
        carry: Callable[[Question], int],
        wake: Wake,
        look: Callable[[Validate], dict[str, Any]] | None = None,
    ) -> None:
        """Nobody has asked yet.

        Args:
            carry: records what is wanted where the next pass finds it; how many things changed. Called by any thread.
            wake: wakes the one thread that decides.
            look: answers what changes nothing, and needs no pass. Called by any thread.
        """
        self._carry = carry
        self._look = look
        self._wake = wake
        self._waiting: list[Asked] = []
        self._taken: list[Asked] = []
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}

    # --- who asks -------------------------------------------------------------------------------------------------

    def ask(self, question: Question) -> Asked | int | dict[str, Any]:
        """Record a question: an answer, or what to wait for.

        Raises:
            ReconcileError: it cannot be recorded.
        """
        if isinstance(question, Validate) and self._look is not None:
            return self._look(question)
        count = self._carry(question)
        asked = Asked(question) if isinstance(question, PASSES) else None
        if asked is not None:
            with self._lock:
                self._waiting.append(asked)
        self._wake.now(reload=isinstance(question, ReloadConfig))
        return count if asked is None else asked

    def leave(self, asked: Asked) -> None:
        """Whoever asked is gone; what was asked for is done all the same."""
        with self._lock:
            for group in (self._waiting, self._taken):
                if asked in group:
                    group.remove(asked)

    # --- the thread that decides ----------------------------------------------------------------------------------

    def serve(self, run_pass: Callable[[bool, Plan | None], PassResult]) -> PassResult:
        """Make a pass for whoever waits for one, and tell them how it ended.

        A saved plan gets a pass of its own: that it is stale concerns nobody else.

        Args:
            run_pass: the pass; told whether maintenance windows are ignored, and the saved plan that is carried out.

        Raises:
            ReconcileError: the pass was refused; they know.
        """
        with self._lock:
            plans = [number for number, item in enumerate(self._waiting) if isinstance(item.question, Apply)]
            until = len(self._waiting) if not plans else plans[0] or 1
            self._taken, self._waiting = self._waiting[:until], self._waiting[until:]
            taken, others = list(self._taken), bool(self._waiting)
        questions = [asked.question for asked in taken]
        try:
            result = run_pass(
                any(isinstance(item, Reconcile) and item.ignore_windows for item in questions),
                next((item.plan for item in questions if isinstance(item, Apply)), None),
            )
        except ReconcileError as error:
            self._end(_line(ControlFailed(failure=failure_of(error))))
            if others or isinstance(error, StalePlan):
                # Whatever woke the loop besides has not been looked at.
                self._wake.now()
            raise
        if others:
            self._wake.now()
        if taken:
            report = PassReport(exit_code=result.exit_code, status=result.status, plan=result.plan)
            self._end(_line(ControlDone(result=report)))
        return result

    def dismiss(self, error: ReconcileError) -> None:
        """No pass will come: tell everybody who waits."""
        with self._lock:
            self._taken, self._waiting = [*self._taken, *self._waiting], []
        self._end(_line(ControlFailed(failure=failure_of(error))))

    def _end(self, line: progress.Event) -> None:
        with self._lock:
            taken, self._taken = self._taken, []
        for asked in taken:
            asked.tell(line)

    # --- the reporter ---------------------------------------------------------------------------------------------

    def started(self, action: Action) -> None:
        """Tell of an action that begins."""
        self._told.clear()
        if self._listens():
            self._tell(progress.started(action))

    def finished(self, outcome: Outcome) -> None:
        """Tell how it ended."""
        if self._listens():
            self._tell(progress.finished(outcome))

    def advance(self, subject: str, done: int, total: int) -> None:
        """Tell of bytes, a few times a second; called by any thread."""
        if not self._listens():
            return
        now = time.monotonic()
        if done < total and now - self._told.get(subject, 0.0) < PROGRESS_SECONDS:
            return
        self._told[subject] = now
        self._tell(progress.advanced(subject, done, total))

    def _listens(self) -> bool:
        return bool(self._waiting or self._taken)

    def _tell(self, event: progress.Event) -> None:
        with self._lock:
            listeners = [*self._taken, *self._waiting]
        for asked in listeners:
            asked.tell(event)


def _line(answer: ControlDone | ControlFailed) -> progress.Event:
    document: progress.Event = json.loads(answer.to_json())
    return document


# --- the socket ---------------------------------------------------------------------------------------------------


@contextmanager
def listening(path: Path, audience: Audience) -> Iterator[Callable[[], None]]:
    """Serve the control socket for as long as the context lasts. Whoever holds the state directory does.

    Args:
        path: the socket. One that a dead daemon left is replaced.
        audience: takes the questions.

    Yields:
        What is to be called now and then: it opens the socket again where somebody removed it.
    """
    door = _Door(path, audience)
    door.open()
    try:
        yield door.renew
    finally:
        door.close()


class _Door:
    """The socket, and the thread that answers it."""

    def __init__(self, path: Path, audience: Audience) -> None:
        self._path, self._audience = path, audience
        self._listener: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._inode = 0

    def open(self) -> None:
        """Listen. Where that is impossible the node is looked after all the same, and who asks is told."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._path.unlink(missing_ok=True)
            with short(self._path) as address:
                listener.bind(address)
            self._path.chmod(0o600)
            listener.listen(MOST_CONNECTIONS)
            self._inode = self._path.stat().st_ino
        except OSError as error:
            listener.close()
            LOG.warning("%s cannot be used: %s", self._path, error)
            return
        self._listener = listener
        self._thread = threading.Thread(target=_accept, args=(listener, self._audience), name="control", daemon=True)
        self._thread.start()

    def renew(self) -> None:
        """Listen again where somebody removed the socket: a daemon of years would not be asked any more."""
        try:
            there = self._path.lstat().st_ino == self._inode
        except OSError:
            there = False
        if there:
            return
        LOG.info("%s is gone, and is made again", self._path)
        self._end()
        self.open()

    def close(self) -> None:
        """Stop listening, and take the socket away."""
        self._path.unlink(missing_ok=True)
        self._end()

    def _end(self) -> None:
        listener, thread, self._listener, self._thread = self._listener, self._thread, None, None
        if listener is None or thread is None:
            return
        # Wakes the thread that accepts; closing alone would not.
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join(REQUEST_SECONDS)
        listener.close()


def _accept(listener: socket.socket, audience: Audience) -> None:
    room = threading.BoundedSemaphore(MOST_CONNECTIONS)
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # it was shut down
        if not room.acquire(blocking=False):
            connection.close()
            continue
        threading.Thread(target=_answer, args=(connection, audience, room), name="caller", daemon=True).start()


def _answer(connection: socket.socket, audience: Audience, room: threading.BoundedSemaphore) -> None:
    try:
        with connection:
            try:
                _check_peer(connection)
                answer = audience.ask(_read(connection))
            except ReconcileError as error:
                _write(connection, _line(ControlFailed(failure=failure_of(error))))
                return
            if not isinstance(answer, Asked):
                done = ControlDone(count=answer) if isinstance(answer, int) else ControlDone(document=answer)
                _write(connection, _line(done))
                return
            try:
                event: progress.Event = {"event": ""}
                while event["event"] not in _LAST:
                    event = answer.next()
                    _write(connection, event)
            finally:
                audience.leave(answer)
    except OSError as error:
        LOG.debug("a caller left: %s", error)
    finally:
        room.release()


def _check_peer(connection: socket.socket) -> None:
    """Only root and this daemon's own user: whoever else can reach the socket shall not change the node."""
    _, uid = peer(connection)
    if uid not in (0, os.geteuid()):
        raise PeerRefused(f"user {uid} may not ask this daemon", hint="run it as the daemon's user, or as root")


def _read(connection: socket.socket) -> Question:
    deadline = time.monotonic() + REQUEST_SECONDS
    content = bytearray()
    while b"\n" not in content:
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        part = connection.recv(2**16)
        if not part or len(content) + len(part) > REQUEST_LIMIT:
            raise UsageError(f"a question is one line of JSON, at most {REQUEST_LIMIT} bytes")
        content += part
    line, _, rest = bytes(content).partition(b"\n")
    if rest:
        raise UsageError("something follows the question")
    try:
        return ControlRequest.model_validate_json(line).ask
    except ValidationError as error:
        said = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise UsageError(f"this daemon does not understand the question: {said}"[:500]) from error


def _write(connection: socket.socket, document: dict[str, Any]) -> None:
    connection.settimeout(WRITE_SECONDS)
    connection.sendall(json.dumps(document).encode() + b"\n")


@contextmanager
def short(path: Path) -> Iterator[str]:
    """An address of a socket however long its path is: unix(7) has room for 107 bytes only.

    Raises:
        OSError: its folder cannot be opened.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)

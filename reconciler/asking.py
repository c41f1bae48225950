"""Asking the daemon that looks after a node; the other end of `reconciler.control`."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from reconciler.control import CONTROL_SOCKET, short
from schemas.control import ANSWER_LIMIT, PASSES, ControlDone, ControlFailed, ControlRequest, Validate
from schemas.errors import DaemonUnreachable
from schemas.failure import error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reconciler.state_dir import StateDir
    from schemas.control import Question
    from schemas.ports import Stop

_CONNECT_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.2
"""How often a caller that waits looks whether it should end."""
ANSWER_SECONDS: Final = 10.0
"""Within which what is only recorded is answered: milliseconds, and a journal that is busy waits for five seconds."""


def ask(
    state: StateDir,
    question: Question,
    *,
    heard: Callable[[dict[str, Any]], None] = lambda _event: None,
    stop: Stop | None = None,
) -> ControlDone:
    """Ask the daemon that holds a state directory, and wait for its answer.

    Args:
        state: the state directory.
        question: what is wanted.
        heard: told what happens meanwhile, in the form of `--json` progress.
        stop: gives up waiting; what was asked for is done all the same.

    Raises:
        DaemonUnreachable: no daemon listens here, it hangs, or it ended before it answered.
        InterruptedError: `stop` was set.
        ReconcileError: the daemon refused, or failed; with its reason.
    """
    path = state.run / CONTROL_SOCKET
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_CONNECT_SECONDS)
        try:
            with short(path) as address:
                connection.connect(address)
            connection.sendall(ControlRequest(ask=question).to_json().encode() + b"\n")
        except OSError as error:
            raise DaemonUnreachable(
                f"no daemon listens on {path}", hint="`reconcile --watch` does; `reconcile` looks by itself"
            ) from error
        # What is only recorded needs no pass: whoever says nothing for that long does not live.
        waits = isinstance(question, (*PASSES, Validate))
        for line in _lines(connection, stop, None if waits else ANSWER_SECONDS):
            event = json.loads(line)
            if event["event"] == "failed":
                raise error_of(ControlFailed.model_validate_json(line).failure)
            if event["event"] == "done":
                return _done(line)
            heard(event)
    raise DaemonUnreachable("the daemon ended before it answered", hint="`reconcile status` shows what is known")


def _done(line: bytes) -> ControlDone:
    try:
        return ControlDone.model_validate_json(line)
    except ValidationError as error:
        raise DaemonUnreachable(
            "the daemon answers in a form that this command does not know", hint="both should be of one version"
        ) from error


def _lines(connection: socket.socket, stop: Stop | None, limit: float | None) -> Iterator[bytes]:
    connection.settimeout(_LOOK_SECONDS if stop is not None else limit)
    begun = time.monotonic()
    content = b""
    while True:
        try:
            part = connection.recv(2**16)
        except TimeoutError:
            if stop is not None and stop.is_set():
                raise InterruptedError("it was given up") from None
            if limit is not None and time.monotonic() - begun >= limit:
                hint = "`reconcile doctor` says for how long it has said nothing"
                raise DaemonUnreachable("the daemon does not answer", hint=hint) from None
            continue
        except OSError:
            return
        if not part:
            return
        *lines, content = (content + part).split(b"\n")
        if len(content) > ANSWER_LIMIT:
            return
        yield from lines

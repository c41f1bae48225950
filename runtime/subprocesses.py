"""One bounded subprocess: own session, no shell, bounded time and output, no survivor in its process group."""

from __future__ import annotations

import os
import resource
import selectors
import signal
import subprocess
import time
from contextlib import suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Final

from schemas.ports import Completed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from schemas.ports import Stop

_CHUNK: Final = 2**16
"""Bytes moved at once: the capacity of a Linux pipe (pipe(7))."""

_STOP_SECONDS: Final = 0.2
"""Between two looks at a request to stop."""


def run_bounded(
    argv: Sequence[str],
    *,
    timeout: float,
    max_output: int,
    env: Mapping[str, str] | None,
    cwd: Path | None,
    stdin: bytes,
    limits: Mapping[int, int | None],
    stop: Stop | None,
) -> Completed:
    """Run a program to its end, as `schemas.ports.Processes.run` says.

    `limits` is by resource of the `resource` module; None leaves one as it is.

    Raises:
        InterruptedError: stopping was requested; the whole process group was killed.
        TimeoutError: the time was up; the whole process group was killed.
        OverflowError: it printed more than `max_output`; the whole process group was killed.
        OSError: it could not be started.
    """
    deadline = time.monotonic() + timeout
    process = subprocess.Popen(
        list(argv),
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=None if env is None else dict(env),
        cwd=cwd,
        start_new_session=True,
        bufsize=0,
    )
    _bound(process.pid, limits)
    with process, selectors.DefaultSelector() as selector:
        try:
            exchange = _Exchange(process, selector, stdin, max_output)
            exchange.run(deadline, argv[0], timeout, stop)
        finally:
            # The leader has not been waited for, so its id still names its group and nothing else.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return Completed(process.returncode, bytes(exchange.stdout), bytes(exchange.stderr))


def _bound(pid: int, limits: Mapping[int, int | None]) -> None:
    """Limit a process from outside, for code between fork and exec is not safe beside threads; no core is left."""
    bounds = {kind: bound for kind, bound in limits.items() if bound is not None}
    for kind, bound in ({**bounds, resource.RLIMIT_CORE: 0} if bounds else {}).items():
        with suppress(ProcessLookupError):
            _, hard = resource.prlimit(pid, kind)
            least = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
            resource.prlimit(pid, kind, (least, least))


class _Exchange:
    """Feeds standard input and collects output until the leader of the group has ended."""

    def __init__(
        self, process: subprocess.Popen[bytes], selector: selectors.BaseSelector, stdin: bytes, max_output: int
    ) -> None:
        self.stdout = bytearray()
        self.stderr = bytearray()
        self._process = process
        self._selector = selector
        self._pending = memoryview(stdin)
        self._max_output = max_output
        self._ended = False
        self._outputs = [
            (stream, buffer)
            for stream, buffer in ((process.stdout, self.stdout), (process.stderr, self.stderr))
            if stream is not None
        ]

    def run(self, deadline: float, program: str, timeout: float, stop: Stop | None) -> None:
        """Pump until the leader has ended.

        Args:
            deadline: on the monotonic clock, seconds.
            program: for messages.
            timeout: for messages, seconds.
            stop: looked at now and then.

        Raises:
            InterruptedError, TimeoutError, OverflowError.
        """
        for stream, buffer in self._outputs:
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, partial(self._read, stream, buffer, program))
        if self._process.stdin is not None:
            os.set_blocking(self._process.stdin.fileno(), False)
            feed = partial(self._feed, self._process.stdin)
            self._selector.register(self._process.stdin, selectors.EVENT_WRITE, feed)
        # The pipes say nothing about the leader: a descendant may hold them open after its end.
        leader = os.pidfd_open(self._process.pid)
        try:
            self._selector.register(leader, selectors.EVENT_READ, self._end)
            while not self._ended:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{program} did not end within {timeout:g} s and was killed")
                if stop is not None and stop.is_set():
                    raise InterruptedError(f"{program} was told to stop and was killed")
                for key, _ in self._selector.select(min(left, _STOP_SECONDS) if stop is not None else left):
                    key.data()
        finally:
            os.close(leader)
        for stream, buffer in self._outputs:
            while not stream.closed and self._read(stream, buffer, program):
                pass

    def _end(self) -> None:
        self._ended = True

    def _feed(self, stream: IO[bytes]) -> None:
        try:
            self._pending = self._pending[os.write(stream.fileno(), self._pending[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not want more
            self._pending = memoryview(b"")
        if not self._pending:
            self._close(stream)

    def _read(self, stream: IO[bytes], buffer: bytearray, program: str) -> bool:
        """Move one chunk; False when nothing is there now or will ever be."""
        try:
            chunk = os.read(stream.fileno(), _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self._close(stream)
            return False
        buffer += chunk
        if len(buffer) > self._max_output:
            raise OverflowError(f"{program} printed more than {self._max_output} bytes and was killed")
        return True

    def _close(self, stream: IO[bytes]) -> None:
        self._selector.unregister(stream)
        stream.close()

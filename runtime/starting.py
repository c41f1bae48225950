"""Starting an instance and waiting until it is ready: with a bound, and with its own words when it fails."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from schemas.errors import BackendUnavailable, EngineUnreachable, NotReadyInTime, StartFailed

if TYPE_CHECKING:
    from runtime.interfaces import Backend, Engine, EngineConnection, InstanceSpec
    from schemas.ports import Clock, Stop

HEALTH_SECONDS: Final = 5.0

READY_POLL_SECONDS: Final = (0.005, 0.25)
"""Shortest and longest time between two questions whether an engine is ready. llama.cpp is within 0.1 s, and a socket
that is not there yet costs 0.1 ms to ask."""

READY_POLL_SHARE: Final = 0.05
"""Of the time that a start has taken so far: what waiting for the next question may add to it."""

LOOK_SECONDS: Final = 0.1
"""Between two looks at a starting engine's process and output: each costs a container engine some milliseconds, in
which it does not start anything."""

OUTPUT_IN_ERRORS: Final = 600
"""Bytes of an engine's last output that are shown with its failure."""

OUTPUT_OF_FAILURES: Final = 2**16
"""Bytes of its last output in which its first error is looked for: several processes may report one after the other."""

_TRACEBACK: Final = "Traceback (most recent call last)"
_ERROR: Final = re.compile(r"(?:^|[\])] )([A-Za-z_][\w.]*(?:Error|Exception|Interrupt)\b[^\n]*)", re.MULTILINE)
"""The last line of a traceback, whatever a logger puts before it; its frames are indented."""


def start_instance(
    backend: Backend, engine: Engine, spec: InstanceSpec, connection: EngineConnection, *, clock: Clock, stop: Stop
) -> None:
    """Create and start an instance, and return once it is ready.

    Args:
        backend: runs it.
        engine: knows how ready looks.
        spec: the instance; its target carries the time bounds.
        connection: to its socket, which may not be there yet.
        clock: for the bounds.
        stop: ends the waiting.

    Raises:
        StartFailed: it ended, or was refused.
        NotReadyInTime: the start timeout passed, or nothing was printed for the stall timeout.
        BackendUnavailable: the backend does not answer, or stopping was requested.
        ImageUnavailable: its image is not here.
    """
    backend.create(spec)
    backend.start(spec.name)
    timeouts = spec.target.timeouts
    started = moved = clock.monotonic()
    printed, looked = "", float("-inf")
    while not _is_ready(engine, connection, spec.launch.health):
        now = clock.monotonic()
        shortest, longest = READY_POLL_SECONDS
        if stop.wait(min(max((now - started) * READY_POLL_SHARE, shortest), longest)):
            raise BackendUnavailable("stopped while the engine was starting")
        if now - looked < LOOK_SECONDS:
            continue
        looked = now
        seen = backend.inspect(spec.name)
        output = backend.output(spec.name, limit=OUTPUT_IN_ERRORS)
        if seen is None or seen.status == "exited":
            ended = (seen.detail or f"exit code {seen.exit_code}") if seen else "it is gone"
            output = backend.output(spec.name, limit=OUTPUT_OF_FAILURES)
            raise StartFailed(f"the engine ended while starting ({ended}){_cause(output)}{_quoted(output)}")
        if output != printed:
            printed, moved = output, now
        if now - started > timeouts.start:
            raise NotReadyInTime(f"not ready after {timeouts.start} s{_quoted(output)}")
        if now - moved > timeouts.stall:
            raise NotReadyInTime(f"no sign of progress for {timeouts.stall} s{_quoted(output)}")


def _is_ready(engine: Engine, connection: EngineConnection, health: str) -> bool:
    try:
        if health:
            connection.read(health, timeout=HEALTH_SECONDS)
        return engine.ready(connection)
    except EngineUnreachable:
        # Not listening yet; whether it still runs is asked next.
        return False


def _cause(output: str) -> str:
    """The first error that a program in Python reported, where others followed from it."""
    found = _ERROR.search(output, max(output.find(_TRACEBACK), 0)) if _TRACEBACK in output else None
    if found is None or found.end() > len(output) - OUTPUT_IN_ERRORS:
        return ""
    return f"; its first error: {found[1][:OUTPUT_IN_ERRORS]}"


def _quoted(output: str) -> str:
    text = " ".join(output.split())
    return f"; it printed: {text[-OUTPUT_IN_ERRORS:]}" if text else ""

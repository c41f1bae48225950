"""Starting an instance and waiting until it is ready: with a bound, and with its own words when it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from schemas.errors import BackendUnavailable, EngineUnreachable, NotReadyInTime, StartFailed

if TYPE_CHECKING:
    from runtime.interfaces import Backend, Engine, EngineConnection, InstanceSpec
    from schemas.ports import Clock, Stop

HEALTH_SECONDS: Final = 5.0
READY_POLL_SECONDS: Final = 0.05
"""Between two looks at a starting engine: llama.cpp is ready 0.1 s after its start, and one look costs 1 ms."""

OUTPUT_IN_ERRORS: Final = 600
"""Bytes of an engine's last output that are shown with its failure."""


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
    printed = ""
    while not _is_ready(engine, connection, spec.launch.health):
        seen = backend.inspect(spec.name)
        output = backend.output(spec.name, limit=OUTPUT_IN_ERRORS)
        if seen is None or seen.status == "exited":
            ended = (seen.detail or f"exit code {seen.exit_code}") if seen else "it is gone"
            raise StartFailed(f"the engine ended while starting ({ended}){_quoted(output)}")
        now = clock.monotonic()
        if output != printed:
            printed, moved = output, now
        if now - started > timeouts.start:
            raise NotReadyInTime(f"not ready after {timeouts.start} s{_quoted(output)}")
        if now - moved > timeouts.stall:
            raise NotReadyInTime(f"no sign of progress for {timeouts.stall} s{_quoted(output)}")
        if stop.wait(READY_POLL_SECONDS):
            raise BackendUnavailable("stopped while the engine was starting")


def _is_ready(engine: Engine, connection: EngineConnection, health: str) -> bool:
    try:
        if health:
            connection.read(health, timeout=HEALTH_SECONDS)
        return engine.ready(connection)
    except EngineUnreachable:
        # Not listening yet; whether it still runs is asked next.
        return False


def _quoted(output: str) -> str:
    text = " ".join(output.split())
    return f"; it printed: {text[-OUTPUT_IN_ERRORS:]}" if text else ""

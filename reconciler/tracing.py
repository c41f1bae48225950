"""Where a pass spends its time, for whoever collects traces; without a collector, nothing is spent on it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from schemas.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from reconciler.executor import Outcome, Reporter
    from schemas.node import NodeConfig
    from schemas.plan import Action

Value = str | int | float | bool


class Span(Protocol):
    """A stretch of time, under way."""

    def put(self, **attributes: Value) -> None:
        """Say more about it."""
        ...

    def failed(self, reason: str, message: str) -> None:
        """It did not come to what it should have."""
        ...


class Tracer(Protocol):
    """Makes spans. An error that passes through one is recorded in it."""

    def span(self, name: str, **attributes: Value) -> AbstractContextManager[Span]:
        """A span below the one that is under way; it ends with the `with`."""
        ...


class _NoSpan:
    def put(self, **attributes: Value) -> None:
        pass

    def failed(self, reason: str, message: str) -> None:
        pass


class NoTracer:
    """Nobody collects traces."""

    @contextmanager
    def span(self, name: str, **attributes: Value) -> Iterator[Span]:  # noqa: ARG002 - nobody wants to know
        """Nothing."""
        yield _NO_SPAN


_NO_SPAN: Final = _NoSpan()
NO_TRACES: Final = NoTracer()


@contextmanager
def traced(config: NodeConfig, node: str, version: str) -> Iterator[Tracer]:
    """What traces passes, for the length of the `with`.

    Args:
        config: the node's configuration.
        node: the node.
        version: of this agent.

    Raises:
        ConfigError: traces are wanted, and what sends them is not installed.
    """
    if config.telemetry.traces is None:
        yield NO_TRACES
        return
    try:
        from reconciler.telemetry.traces import exporting  # noqa: PLC0415 - 15 MiB, where it is asked for
    except ImportError as error:
        raise ConfigError(
            f"telemetry.traces needs OpenTelemetry, which is not installed: {error}",
            hint="pip install 'inference-reconciler[otel]'",
        ) from error
    with exporting(config.telemetry.traces, network=config.network, node=node, version=version) as tracer:
        yield tracer


class TracedActions:
    """A reporter that makes a span of each action, and passes on what it is told."""

    def __init__(self, reporter: Reporter, tracer: Tracer) -> None:
        """Nothing is under way."""
        self._reporter, self._tracer = reporter, tracer
        self._under_way: AbstractContextManager[Span] | None = None
        self._span: Span = _NO_SPAN

    def started(self, action: Action) -> None:
        """An action begins."""
        self._under_way = self._tracer.span(
            f"action {action.kind}", **{"reconcile.action": action.id, "reconcile.cause": action.cause}
        )
        self._span = self._under_way.__enter__()
        self._reporter.started(action)

    def finished(self, outcome: Outcome) -> None:
        """An action ended; one that was skipped never began."""
        self._reporter.finished(outcome)
        if self._under_way is None:
            return
        self._span.put(**{"reconcile.outcome": outcome.status})
        if outcome.status == "failed" and outcome.error is not None:
            self._span.failed(outcome.error.reason, outcome.error.message)
        self._under_way.__exit__(None, None, None)
        self._under_way, self._span = None, _NO_SPAN

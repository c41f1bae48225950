"""Stands beside a daemon's passes: counts them, serves what there is to see, and has events told."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING

from schemas.errors import ReconcileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reconciler.journal import Journal
    from reconciler.loop import PassResult
    from reconciler.notifications import Notifier
    from reconciler.state_dir import StateDir
    from reconciler.telemetry.metrics import Metrics
    from schemas.node import TelemetryConfig
    from schemas.status import NodeStatus

LOG = logging.getLogger("reconcile")


@contextmanager
def observed(
    config: TelemetryConfig,
    state: StateDir,
    journal: Callable[[], Journal],
    notifier: Notifier | None,
    run_pass: Callable[[], PassResult],
    shows: Callable[[Callable[[NodeStatus], None]], None],
) -> Iterator[Callable[[], PassResult]]:
    """A daemon's pass, counted, and what it noted told; for the length of the `with`.

    Args:
        config: where it can be looked at, if anywhere.
        state: the node's folder.
        journal: opens its journal for reading.
        notifier: tells of events; None where nobody is told.
        run_pass: one pass.
        shows: has somebody told of what is published in the middle of a pass.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    with ExitStack() as stack:
        run = run_pass
        if config.listen is not None:
            from reconciler.telemetry.metrics import Metrics  # noqa: PLC0415 - 30 ms and 3 MiB, where it is asked for
            from reconciler.telemetry.server import View, serving  # noqa: PLC0415 - as above

            metrics = Metrics()
            shown = stack.enter_context(serving(config, View(state, journal, metrics.text, page=config.page)))
            LOG.info("telemetry: %s", shown)
            run = _counted(run, metrics)
            shows(metrics.show)
        if notifier is not None:
            from reconciler.notifications import notifying  # noqa: PLC0415 - where it is asked for

            run = _told(run, stack.enter_context(notifying(notifier)))
        yield run


def _told(run_pass: Callable[[], PassResult], news: Callable[[], None]) -> Callable[[], PassResult]:
    @wraps(run_pass)
    def run() -> PassResult:
        try:
            return run_pass()
        finally:
            news()

    return run


def _counted(run_pass: Callable[[], PassResult], metrics: Metrics) -> Callable[[], PassResult]:
    @wraps(run_pass)
    def run() -> PassResult:
        begun = time.monotonic()
        try:
            result = run_pass()
        except ReconcileError as error:
            metrics.refused(error, time.monotonic() - begun)
            raise
        metrics.passed(result, time.monotonic() - begun)
        return result

    return run

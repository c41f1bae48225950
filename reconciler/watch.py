"""`reconcile --watch`: passes until told to stop. Triggers only wake it; every pass takes the same path."""

from __future__ import annotations

import logging
import signal
import threading
from typing import TYPE_CHECKING, Final

from schemas.errors import ReconcileError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from reconciler.loop import PassResult
    from schemas.ports import Clock, Randomness, Stop

LOG = logging.getLogger("reconcile")

JITTER: Final = 0.1
"""Share by which an interval varies, so that a fleet does not ask its repository in step."""

MIN_WAIT_SECONDS: Final = 1.0
"""A hold that ends in this moment does not turn the loop into a busy one."""


class Wake:
    """Wakes the loop, or ends it. Set from signal handlers and threads; a burst is one pass."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._stopped = threading.Event()
        self._others: tuple[threading.Event, ...] = ()
        self.reload = False

    def also(self, event: threading.Event) -> None:
        """Set another event as well, from now on, whenever the loop is woken or ended."""
        self._others = (*self._others, event)

    def now(self, *, reload: bool = False) -> None:
        """Look at once; `reload` asks for the configuration to be read again."""
        self.reload = self.reload or reload
        self._set()

    def stop(self) -> None:
        """End the loop, and whatever is under way at its next safe point."""
        self._stopped.set()
        self._set()

    def _set(self) -> None:
        for event in (self._event, *self._others):
            event.set()

    def is_set(self) -> bool:
        """Whether stopping was requested (the `Stop` protocol)."""
        return self._stopped.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep unless stopping is requested (the `Stop` protocol)."""
        return self._stopped.wait(seconds)

    def rest(self, seconds: float) -> None:
        """Sleep until woken, stopped, or the time is up."""
        self._event.wait(seconds)
        self._event.clear()

    def until(self, clock: Clock, seconds: float) -> Rest:
        """What may be done while the loop rests."""
        return Rest(self._event, clock, clock.monotonic() + seconds)

    def on_signals(self) -> None:
        """SIGHUP looks at once and reads the configuration again; SIGTERM and SIGINT end the loop."""

        def hang_up(_number: int, _frame: FrameType | None) -> None:
            self.now(reload=True)

        def terminate(_number: int, _frame: FrameType | None) -> None:
            self.stop()

        signal.signal(signal.SIGHUP, hang_up)
        signal.signal(signal.SIGTERM, terminate)
        signal.signal(signal.SIGINT, terminate)


class Rest:
    """A rest of the loop, as a `Stop` for what is done meanwhile: over when it is woken, stopped, or the time is up."""

    def __init__(self, event: threading.Event, clock: Clock, end: float) -> None:
        self._event = event
        self._clock = clock
        self._end = end

    @property
    def left(self) -> float:
        """Seconds until the time is up."""
        return max(0.0, self._end - self._clock.monotonic())

    def is_set(self) -> bool:
        """Whether the rest is over."""
        return self._event.is_set() or not self.left

    def wait(self, seconds: float) -> bool:
        """Sleep; returns early, and True, when the rest is over."""
        return self._event.wait(min(seconds, self.left)) or not self.left


def watch(
    run_pass: Callable[[], PassResult],
    *,
    wake: Wake,
    interval: float,
    clock: Clock,
    randomness: Randomness,
    reported: Callable[[PassResult], None],
    idle: Callable[[Stop], bool] | None = None,
) -> None:
    """Run passes until stopped, or until the configuration should be read again.

    Args:
        run_pass: one pass; it may raise what a pass may raise, which is logged and tried again.
        wake: wakes or ends the loop.
        interval: seconds between passes when nothing wakes it.
        clock: to know when a hold ends.
        randomness: for jitter.
        reported: told about each pass that ended.
        idle: what to do while resting; ends soon after its `Stop` is set, and says whether to look at once.
    """
    while not (wake.is_set() or wake.reload):
        wait = interval * randomness.uniform(1 - JITTER, 1 + JITTER)
        try:
            result = run_pass()
        except ReconcileError as error:
            # A refusal is an answer, not a fault of ours: its reason says more than a traceback.
            LOG.error("%s: %s", error.reason, error.message)  # noqa: TRY400 - see above
        else:
            reported(result)
            now = clock.now()
            for held in result.plan.held:
                if held.until is not None:
                    wait = min(wait, max((held.until - now).total_seconds(), MIN_WAIT_SECONDS))
        if idle is None:
            wake.rest(wait)
            continue
        rest = wake.until(clock, wait)
        if not _idled(idle, rest):
            wake.rest(rest.left)


def _idled(idle: Callable[[Stop], bool], rest: Rest) -> bool:
    """Do what is done while resting; whether it found something that a pass should look at."""
    try:
        return idle(rest)
    except ReconcileError as error:
        # What is done while resting is never worth a pass: it is tried again in the next rest.
        LOG.warning("%s: %s", error.reason, error.message)
        return False

"""One limit for the bytes of all downloads: a token bucket that every reader draws from before it reads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from schemas.ports import Clock

_BURST_SECONDS: Final = 0.25
"""How much of the rate may be taken at once: short enough that others on the line do not notice."""

_LEAST_GRANT: Final = 2**12
"""Bytes that are worth a read of their own."""

_LONGEST_WAIT: Final = 0.1
"""Seconds after which a waiting reader looks up, to see whether its transfer was ended."""


class Throttle:
    """A bucket that fills with `rate` bytes a second. Shared by threads."""

    def __init__(self, rate: Callable[[datetime], int | None], clock: Clock) -> None:
        """Begin with a full bucket.

        Args:
            rate: bytes a second that are allowed at a moment; None: no limit; 0: no downloads.
            clock: the time.
        """
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._left = 0.0
        self._at: float | None = None
        self._current: int | None = None
        self._asked_at = float("-inf")
        self._waiting = threading.Event()  # never set: a clock that can be waited on

    def paused(self) -> bool:
        """Whether nothing may be downloaded now."""
        with self._lock:
            return self._limit(self._clock.monotonic()) == 0

    def grant(self, wanted: int) -> int:
        """How many bytes may be read now; 0 after a short wait in which none became free.

        What is granted and then not used is to be given back.

        Args:
            wanted: bytes that the caller has room for, at least 1.
        """
        with self._lock:
            granted, wait = self._take(wanted)
        if not granted:
            self._waiting.wait(min(wait, _LONGEST_WAIT))
        return granted

    def give_back(self, unused: int) -> None:
        """Fewer bytes came than were granted."""
        with self._lock:
            self._left += unused

    def _take(self, wanted: int) -> tuple[int, float]:
        """Bytes granted, or none and the seconds until some are free."""
        now = self._clock.monotonic()
        rate = self._limit(now)
        if rate is None:
            return wanted, 0.0
        if not rate:
            return 0, _LONGEST_WAIT
        burst = max(rate * _BURST_SECONDS, _LEAST_GRANT)
        elapsed = now - self._at if self._at is not None else _BURST_SECONDS
        self._at = now
        self._left = min(burst, self._left + elapsed * rate)
        least = min(wanted, _LEAST_GRANT)
        if self._left < least:
            return 0, (least - self._left) / rate
        granted = min(wanted, int(self._left))
        self._left -= granted
        return granted, 0.0

    def _limit(self, now: float) -> int | None:
        """The rate; windows change by the minute, so calendars are not looked at for every read."""
        if now - self._asked_at >= 1:
            self._current, self._asked_at = self._rate(self._clock.now()), now
        return self._current

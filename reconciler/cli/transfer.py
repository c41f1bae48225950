"""What a command shows while it moves many bytes: one live line on a terminal, else a line for each thing that is done.

Interrupting it (SIGINT, SIGTERM) asks for a clean end, so that what was verified is kept.
"""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from reconciler.cli.console import note, size

if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Self

_WIDTH: Final = 79


class Transfer:
    """Progress and interruption of one command."""

    def __init__(self) -> None:
        from runtime.host import StopEvent

        self.stop = StopEvent()
        self._live = sys.stderr.isatty()
        self._lock = threading.Lock()
        self._shown = ""
        self._done: set[str] = set()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._clear()

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.stop.set()

    def told(self, subject: str, done: int, total: int) -> None:
        """Bytes of something long are secured."""
        with self._lock:
            if self._live:
                self._show(f"  {subject}  {size(done)} of {size(total)}")
            if done >= total and subject not in self._done:
                self._done.add(subject)
                self._clear()
                note(f"  {subject}  {size(total)}")

    def note(self, text: str) -> None:
        """Say something that is worth a line."""
        with self._lock:
            self._clear()
            note(text)

    def _show(self, text: str) -> None:
        text = text[:_WIDTH]
        sys.stderr.write(f"\r{text}{' ' * (len(self._shown) - len(text))}")
        sys.stderr.flush()
        self._shown = text

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write(f"\r{' ' * len(self._shown)}\r")
            sys.stderr.flush()
            self._shown = ""

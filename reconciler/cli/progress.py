"""What a pass is doing, live: a display on a terminal, a line per step elsewhere, JSON Lines for programs."""

from __future__ import annotations

import json
import sys
import threading
from typing import TYPE_CHECKING, Protocol, Self

from reconciler.cli.render import action_line

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from reconciler.executor import Outcome
    from schemas.plan import Action


class Display(Protocol):
    """A reporter that is also told about bytes, and that may own the terminal while a pass runs."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def started(self, action: Action) -> None:
        """An action begins."""
        ...

    def finished(self, outcome: Outcome) -> None:
        """An action ended, or was skipped."""
        ...

    def advance(self, subject: str, done: int, total: int) -> None:
        """Bytes of something long are secured."""
        ...


def display(*, as_json: bool) -> Display:
    """The display that fits where the output goes."""
    if as_json:
        return JsonDisplay()
    return LiveDisplay() if sys.stderr.isatty() else LineDisplay()


_MARKS = {"done": "done", "failed": "failed", "skipped": "skipped", "cancelled": "cancelled"}


def _result(outcome: Outcome) -> str:
    text = f"    {_MARKS[outcome.status]}"
    if outcome.status == "done":
        return f"{text} in {outcome.seconds:.1f} s"
    if outcome.error is not None:
        return f"{text}: {outcome.error.reason}: {outcome.error.message}"
    return f"{text}: what it needs did not succeed" if outcome.status == "skipped" else text


class LineDisplay:
    """One line per step, on standard error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def started(self, action: Action) -> None:
        """Print the action."""
        print(action_line(action), file=sys.stderr, flush=True)  # noqa: T201 - this is the terminal

    def finished(self, outcome: Outcome) -> None:
        """Print how it ended; a skipped action was never announced."""
        if outcome.status in ("skipped", "cancelled") and outcome.error is None:
            print(action_line(outcome.action), file=sys.stderr)  # noqa: T201 - this is the terminal
        print(_result(outcome), file=sys.stderr, flush=True)  # noqa: T201 - this is the terminal

    def advance(self, subject: str, done: int, total: int) -> None:
        """Bytes are not worth a line each."""


class JsonDisplay(LineDisplay):
    """JSON Lines on standard error: one object per event, with `formatVersion`."""

    def started(self, action: Action) -> None:
        """Write an object."""
        self._write({"event": "started", "action": json.loads(action.to_json())})

    def finished(self, outcome: Outcome) -> None:
        """Write an object."""
        error = None
        if outcome.error is not None:
            error = {"reason": outcome.error.reason, "message": outcome.error.message}
        self._write({"event": "finished", "action": outcome.action.id, "status": outcome.status, "error": error})

    def advance(self, subject: str, done: int, total: int) -> None:
        """Write an object for what is complete."""
        if done == total:
            self._write({"event": "progress", "subject": subject, "done": done, "total": total})

    def _write(self, document: dict[str, object]) -> None:
        print(json.dumps({"formatVersion": "1", **document}), file=sys.stderr, flush=True)  # noqa: T201 - the output


class LiveDisplay(LineDisplay):
    """Bars on a terminal, below the lines of the steps."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._console = Console(stderr=True, highlight=False)
        self._bars: RichProgress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, action: Action) -> None:
        """Print the action above the bars."""
        self._print(action_line(action))

    def finished(self, outcome: Outcome) -> None:
        """Print how it ended above the bars, and clear them."""
        with self._lock:
            for task in self._tasks.values():
                self._bars.remove_task(task)
            self._tasks.clear()
        if outcome.status in ("skipped", "cancelled") and outcome.error is None:
            self._print(action_line(outcome.action))
        self._print(_result(outcome))

    def advance(self, subject: str, done: int, total: int) -> None:
        """Move a bar."""
        with self._lock:
            if subject not in self._tasks:
                self._tasks[subject] = self._bars.add_task(subject, total=total)
            self._bars.update(self._tasks[subject], completed=done, total=total)

    def _print(self, line: str) -> None:
        from rich.text import Text

        self._console.print(Text.from_ansi(line))

"""What a pass is doing, live: a display on a terminal, a line per step elsewhere, JSON Lines for programs."""

from __future__ import annotations

import json
import logging
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol, Self

from reconciler import progress
from reconciler.cli.render_plan import action_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from rich.console import Console
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


def display(*, as_json: bool, logged: bool = False) -> Display:
    """The display that fits where the output goes.

    Args:
        as_json: progress is for programs.
        logged: it goes to the log, with all else that a daemon writes.
    """
    if logged:
        return LogDisplay()
    if as_json:
        return JsonDisplay()
    return LiveDisplay() if sys.stderr.isatty() else LineDisplay()


LOG = logging.getLogger("reconcile")

_MAX_BARS: Final = 12
"""Bars of files at once: a terminal has few lines, a model may have hundreds of files."""

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
        self._write(progress.started(action))

    def finished(self, outcome: Outcome) -> None:
        """Write an object."""
        self._write(progress.finished(outcome))

    def advance(self, subject: str, done: int, total: int) -> None:
        """Write an object for what is complete."""
        if done == total:
            self._write(progress.advanced(subject, done, total))

    def _write(self, event: progress.Event) -> None:
        print(json.dumps(event), file=sys.stderr, flush=True)  # noqa: T201 - the output


class LogDisplay(LineDisplay):
    """What begins and ends, as lines of the log with fields of their own; bytes are not worth lines there."""

    def started(self, action: Action) -> None:
        """Log it."""
        LOG.info(
            "%s: %s", action.id, action.cause, extra={"action": action.id, "kind": action.kind, "status": "started"}
        )

    def finished(self, outcome: Outcome) -> None:
        """Log it, and how it ended."""
        error = outcome.error
        fields: dict[str, object] = {
            "action": outcome.action.id,
            "kind": outcome.action.kind,
            "status": outcome.status,
            "seconds": round(outcome.seconds, 3),
        }
        if error is not None:
            fields["reason"] = error.reason
        level = logging.WARNING if outcome.status == "failed" else logging.INFO
        said = f"{error.reason}: {error.message}" if error is not None else outcome.status
        LOG.log(level, "%s: %s", outcome.action.id, said, extra=fields)

    def advance(self, subject: str, done: int, total: int) -> None:
        """Nothing."""


class Bars:
    """Bars on a terminal: one for every file that is on its way, and one for all of them together.

    Speed and time left are measured by rich over the last half minute.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._bars: RichProgress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._totals: dict[str, tuple[int, int]] = {}
        self._tasks: dict[str, TaskID] = {}
        self._all: TaskID | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def expect(self, sizes: Mapping[str, int]) -> None:
        """Say what will come, so that the bar of all knows its end from the beginning."""
        with self._lock:
            for subject, total in sizes.items():
                self._totals.setdefault(subject, (0, total))
            self._sum()

    def advance(self, subject: str, done: int, total: int) -> None:
        """Move a bar; one that is full makes room for others."""
        with self._lock:
            self._totals[subject] = (done, total)
            if done < total and subject not in self._tasks and len(self._tasks) < _MAX_BARS:
                self._tasks[subject] = self._bars.add_task(subject.replace("[", "\\["), total=total, completed=done)
            elif subject in self._tasks:
                self._bars.update(self._tasks[subject], completed=done, total=total)
            if done >= total and subject in self._tasks:
                self._bars.remove_task(self._tasks.pop(subject))
            self._sum()

    def clear(self) -> None:
        """The work is over: the next one has bars of its own."""
        with self._lock:
            for task in (*self._tasks.values(), *((self._all,) if self._all is not None else ())):
                self._bars.remove_task(task)
            self._all = None
            self._tasks.clear()
            self._totals.clear()

    def _sum(self) -> None:
        if len(self._totals) < 2:  # noqa: PLR2004 - the bar of one file says it all
            return
        done, total = (sum(column) for column in zip(*self._totals.values(), strict=True))
        finished = sum(done == total for done, total in self._totals.values())
        text = f"[bold]all, {finished} of {len(self._totals)} files[/]"
        if self._all is None:
            self._all = self._bars.add_task(text, total=total, completed=done)
        else:
            self._bars.update(self._all, description=text, completed=done, total=total)


class LiveDisplay(LineDisplay):
    """Bars on a terminal, below the lines of the steps."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._bars = Bars(self._console)

    def __enter__(self) -> Self:
        self._bars.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.__exit__(kind, error, trace)

    def started(self, action: Action) -> None:
        """Print the action above the bars."""
        self._print(action_line(action))

    def finished(self, outcome: Outcome) -> None:
        """Print how it ended above the bars, and clear them."""
        self._bars.clear()
        if outcome.status in ("skipped", "cancelled") and outcome.error is None:
            self._print(action_line(outcome.action))
        self._print(_result(outcome))

    def advance(self, subject: str, done: int, total: int) -> None:
        """Move a bar."""
        self._bars.advance(subject, done, total)

    def _print(self, line: str) -> None:
        from rich.text import Text

        self._console.print(Text.from_ansi(line))


@contextmanager
def reading(sizes: Mapping[str, int] | None = None) -> Iterator[Callable[[str, int, int], None] | None]:
    """Bars for data that is read once, while it is; nothing where nobody watches.

    Args:
        sizes: bytes of what will be read, by name, as far as known.

    Yields:
        What is to be told of each file's progress.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Bars(Console(stderr=True, highlight=False)) as bars:
        bars.expect(sizes or {})
        yield bars.advance

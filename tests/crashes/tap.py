"""Counts everything that an agent does to the outside, and ends it by SIGKILL at a chosen one."""

from __future__ import annotations

import os
import signal
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reconciler.journal import Journal
from tests.support.crashing import CountingFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from schemas.ports import Files

LOOKS = frozenset(
    {"counts", "inspect", "is_peer", "list", "look", "not_enforced", "output", "peer", "read", "request", "view"}
)
"""Calls that change nothing outside."""
OFTEN = 3
"""Occurrences of such a call in one operation beyond which it is a wait's question: as many as the machine is slow."""


@dataclass(frozen=True, slots=True)
class Point:
    """A moment at which an agent may die: a call, and the how-manyth of its kind in an operation."""

    label: str
    """`journal.commit before`, `files.write within`, `native.start after`."""
    number: int
    """From 0."""

    def __str__(self) -> str:
        """As a person reads it."""
        return f"{self.label} #{self.number}"


@dataclass
class Tap:
    """Sees every point of one process."""

    at: Point | None = None
    """Where it ends; None for nowhere."""
    passed: list[Point] = field(default_factory=list)
    _counts: Counter[str] = field(default_factory=Counter)

    def point(self, label: str, half: Callable[[], None] = lambda: None) -> None:
        """Pass a point, or die there, with half of something done."""
        here = Point(label, self._counts[label])
        self._counts[label] += 1
        if here == self.at:
            half()
            os.kill(os.getpid(), signal.SIGKILL)
        if here.number < OFTEN or label.partition(" ")[0].rpartition(".")[2] not in LOOKS:
            self.passed.append(here)

    def files(self, inner: Files) -> Files:
        """A disk under this tap: killed in the middle of what has parts, and after each call."""

        def around(_number: int, call: Callable[[], None]) -> None:
            self.point("files within", files.half)
            call()
            self.point("files after")

        files = CountingFiles(inner, around)
        return files

    def journal(self, path: Path) -> Journal:
        """A journal under this tap: killed before and after each commit."""
        return _Journal(path, self)

    def around(self, inner: Any, name: str) -> Any:
        """Anything that reaches outside, with its calls under this tap."""
        return _Outside(inner, name, self)


class _Journal(Journal):
    """Its writes pass points."""

    def __init__(self, path: Path, tap: Tap) -> None:
        self._tap = tap
        super().__init__(path)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with super()._transaction():
            yield
            self._tap.point("journal before")
        self._tap.point("journal after")


class _Outside:
    """Hands every call on."""

    def __init__(self, inner: Any, name: str, tap: Tap) -> None:
        self._inner, self._name, self._tap = inner, name, tap

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._inner, attribute)
        if not callable(found):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            label = f"{self._name}.{attribute}"
            self._tap.point(f"{label} before")
            result = found(*arguments, **named)
            self._tap.point(f"{label} after")
            return result

        return call

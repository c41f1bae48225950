"""What goes wrong, and when: every call to the outside is a point at which something may happen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping


class CrashError(BaseException):
    """The agent dies here. Not an `Exception`: nothing may catch it."""


@dataclass(slots=True)
class Faults:
    """The faults of one schedule. Calm unless told otherwise."""

    chance: random.Random
    trace: list[str] = field(default_factory=list)
    points: int = 0
    """How many points were passed in all."""
    crash_in: int = 0
    """Points after which the agent dies; 0 for never."""
    share: float = 0.0
    """Of the calls that may fail, those that do."""
    only: str = ""
    """Prefix of the calls that may fail; empty for all."""
    struck: int = 0
    crashes: int = 0
    at_point: Callable[[str], None] = lambda _name: None
    """Looks at the world at each point."""

    def calm(self) -> None:
        """Nothing happens from now on."""
        self.crash_in, self.share, self.only = 0, 0.0, ""

    def point(self, name: str, half: Callable[[], object] | None = None) -> None:
        """Something is about to happen, or just did.

        Args:
            name: what.
            half: does a part of it, which a crash may leave behind.
        """
        self.points += 1
        self.at_point(name)
        if not self.crash_in:
            return
        self.crash_in -= 1
        if not self.crash_in:
            if half is not None and self.chance.random() < 0.5:
                half()
                name += ", half done"
            self.crashes += 1
            self.trace.append(f"    the agent dies at: {name}")
            raise CrashError(name)

    def strikes(self, name: str) -> bool:
        """Whether a call fails."""
        if not self.share or not name.startswith(self.only) or self.chance.random() >= self.share:
            return False
        self.struck += 1
        self.trace.append(f"    fails: {name}")
        return True


class Faulty:
    """Any adapter, with a point before and after each of its calls, and the errors that its protocol allows."""

    def __init__(
        self,
        inner: Any,
        name: str,
        faults: Faults,
        errors: Mapping[str, tuple[Callable[[], Exception], ...]],
    ) -> None:
        """Wrap an adapter.

        Args:
            inner: the adapter.
            name: what the trace calls it.
            faults: what happens.
            errors: by method: what it may raise.
        """
        self._inner = inner
        self._name = name
        self._faults = faults
        self._errors = errors

    def __getattr__(self, method: str) -> Any:
        found = getattr(self._inner, method)
        if not callable(found):
            return found
        name, faults, errors = f"{self._name}.{method}", self._faults, self._errors.get(method, ())

        def call(*args: Any, **named: Any) -> Any:
            faults.point(name)
            if errors and faults.strikes(name):
                error = faults.chance.choice(errors)()
                raise error
            result = found(*args, **named)
            faults.point(f"{name} done")
            return result

        return call

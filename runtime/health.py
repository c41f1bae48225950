"""Whether an instance is well: what its backend sees, whether its endpoint answers, and whether tokens come.

An engine that hangs can go on saying that it is well. So it counts as bad once it has had requests, or given no answer,
for a while without its count of tokens moving. A look says what is; what was before is kept here, between the looks of
one agent: after its restart the time begins again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from schemas.errors import EngineUnreachable

if TYPE_CHECKING:
    from runtime.interfaces import Engine, EngineConnection
    from schemas.observation import Instance
    from schemas.ports import Clock

MOST_PER_LOOK: Final = 1 / 3
"""Part of the bound that one gap between looks can count for: three looks at least have to agree. An agent that was
itself stopped for an hour has not seen an hour without tokens."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """Since when an instance has not moved."""

    intent: str
    tokens: int
    """-1 where it does not say."""
    stood: float
    """Seconds for which it was seen to stand still."""
    looked: float
    """Time of the last look, seconds on the monotonic clock."""


class HealthWatch:
    """Looks at instances, and remembers what it needs of earlier looks. Used by one thread."""

    def __init__(self, clock: Clock) -> None:
        """Remember nothing yet.

        Args:
            clock: its monotonic time counts.
        """
        self._clock = clock
        self._marks: dict[str, _Mark] = {}

    def look(self, item: Instance, engine: Engine, connection: EngineConnection, *, stall: float) -> Instance:
        """An instance with its health, and with what is wrong.

        Args:
            item: as its backend sees it; only a running one can be asked.
            engine: what it runs.
            connection: to it.
            stall: seconds without a token, or an answer, after which it is bad.
        """
        if item.status != "running" or item.health == "unhealthy":
            self._marks.pop(item.name, None)
            return item
        tokens, busy, trouble = _ask(engine, connection)
        if not busy:
            self._marks.pop(item.name, None)
            return replace(item, health="healthy")
        mark = self._moved(item, tokens, stall)
        if mark.stood >= stall:
            # Without the seconds: they would make every look another.
            return replace(item, health="unhealthy", detail=f"{trouble} for {stall:g} s")
        return replace(item, health="unknown" if tokens < 0 else "healthy", detail=trouble if tokens < 0 else "")

    def _moved(self, item: Instance, tokens: int, stall: float) -> _Mark:
        now, before = self._clock.monotonic(), self._marks.get(item.name)
        # An engine that does not answer has not moved either, whatever its count was.
        same = before is not None and before.intent == item.intent and (tokens in (-1, before.tokens))
        if before is not None and same:
            stood = before.stood + min(max(now - before.looked, 0.0), stall * MOST_PER_LOOK)
            mark = replace(before, stood=stood, looked=now)
        else:
            mark = _Mark(item.intent, tokens, 0.0, now)
        self._marks[item.name] = mark
        return mark


def _ask(engine: Engine, connection: EngineConnection) -> tuple[int, bool, str]:
    """Tokens so far (-1 where it does not say), whether something should be moving, and what is wrong if it is not."""
    try:
        if not engine.ready(connection):
            return -1, True, "it says that it is not ready"
    except EngineUnreachable as error:
        return -1, True, f"it does not answer ({error.message})"
    try:
        doing = engine.activity(connection)
    except EngineUnreachable:
        return -1, True, "it says that it is well, and not what it is doing"
    if doing is None:
        return -1, False, ""
    return doing.tokens, doing.running + doing.waiting > 0, "it has requests, and no token comes"

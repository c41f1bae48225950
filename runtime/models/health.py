"""What is known of each source during one download, and which of them is asked next.

Nothing here waits or reads: the caller says what happened, and holds the lock.

- Sources of the snapshot come before the node's fallback ones: those are asked only for what no other can give now.
- Among equals the one is asked that should answer first: connections in use over bytes a second per connection, with
  those tried first of whom nothing is known. One that sent wrong bytes falls behind each time.
- A failure that may pass costs a strike and a growing pause; strikes in a row end the source for this download.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from runtime.models.sources import Interrupted, Refused, SourceError, Unsuitable, WholeOnly, WrongContent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from runtime.models.sources import Source

MAX_STRIKES: Final = 6
"""Failures in a row after which a source is given up: with the pauses, about eight seconds of trying."""

_STALL_STRIKES: Final = 3
"""What a stall counts for: two in a row end a source."""

_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 4.0
"""Seconds between attempts, doubling from the first to the longest."""

MAX_RETRY_AFTER: Final = 60.0
"""Longest `Retry-After`, seconds, that is waited for here; a longer one is for the next pass."""

_BLAME: Final = 4.0
"""How much longer a source seems to take for each piece of wrong bytes it sent."""

_MEMORY: Final = 0.3
"""Weight of the newest speed in the running one."""


@dataclass(slots=True, eq=False)
class SourceState:
    """One source during one download."""

    source: Source | None
    """None where the policy refused it from the start."""
    shown: str
    fallback: bool
    active: int = 0
    """Transfers running now."""
    rate: float = 0.0
    """Bytes a second of one connection; 0 while unknown."""
    strikes: int = 0
    """Failures in a row."""
    struck_at: float = -math.inf
    resting_until: float = -math.inf
    wrong: int = 0
    """Pieces with wrong bytes."""
    dropped: str = ""
    """Why it is not asked any more; empty while it is."""
    refused: bool = False
    """Dropped because the node's policy says so."""
    last: str = ""
    """The last thing that went wrong, for people."""
    whole_only: bool = False
    unsuitable: dict[str, str] = field(default_factory=dict)
    """Files that it cannot give, with the reason."""
    differs: set[str] = field(default_factory=set)
    """Those among them of which it has other content."""
    reading: dict[str, int] = field(default_factory=dict)
    """For sources of whole files only: which worker reads which file."""


class Health:
    """All sources of one download."""

    def __init__(
        self, states: Sequence[SourceState], *, clock: Callable[[], float], jitter: Callable[[float, float], float]
    ) -> None:
        """Begin.

        Args:
            states: in the order in which they are preferred while nothing is known of them.
            clock: monotonic seconds.
            jitter: a number between two.
        """
        self.states = tuple(states)
        self._clock = clock
        self._jitter = jitter

    def possible(self, path: str) -> list[SourceState]:
        """Sources that may still give a file, now or later."""
        return [state for state in self.states if not state.dropped and path not in state.unsuitable]

    def choose(self, candidates: Iterable[SourceState], path: str, *, worker: int, parts: int) -> SourceState | None:
        """The source to ask now, None if all of them are to be left alone for the moment.

        Args:
            candidates: sources that are acceptable for the piece.
            path: its file.
            worker: who asks.
            parts: pieces of the file; where a source sends whole files only, one worker at a time reads a file of
                several.
        """
        now = self._clock()
        free = [
            state
            for state in candidates
            if state.resting_until <= now
            and not (state.whole_only and parts > 1 and state.reading.get(path, worker) != worker)
        ]
        first = [state for state in free if not state.fallback] or free
        return min(first, key=_expected, default=None)

    def wakes_at(self) -> float:
        """When the next resting source may be asked again; infinity if none rests."""
        now = self._clock()
        return min((s.resting_until for s in self.states if not s.dropped and s.resting_until > now), default=math.inf)

    def delivered(self, state: SourceState, *, received: int, seconds: float) -> None:
        """A source sent right bytes."""
        state.strikes = 0
        self.measured(state, received=received, seconds=seconds)

    def measured(self, state: SourceState, *, received: int, seconds: float) -> None:
        """A source was seen at work for a while."""
        rate = received / max(seconds, 1e-6)
        state.rate = rate if not state.rate else (1 - _MEMORY) * state.rate + _MEMORY * rate

    def sent_wrong(self, state: SourceState, path: str) -> None:
        """A source sent bytes that do not have their hash."""
        state.wrong += 1
        state.last = f"sent wrong bytes of {path}"

    def failed(
        self, state: SourceState, path: str, error: SourceError, *, started: float, stalled: bool = False
    ) -> None:
        """A transfer failed.

        Args:
            state: the source.
            path: the file that was asked for.
            error: what happened.
            started: when the transfer began: transfers that ran side by side fail for one reason, and count once.
            stalled: it cost a whole stall timeout, and weighs accordingly.
        """
        state.last = str(error)
        if isinstance(error, Refused):
            state.dropped = str(error)
            state.refused = True
        elif isinstance(error, Unsuitable):
            state.unsuitable[path] = str(error)
            if isinstance(error, WrongContent):
                state.differs.add(path)
        elif isinstance(error, WholeOnly):
            state.whole_only = True
        elif isinstance(error, Interrupted):
            self._strike(state, error, started, _STALL_STRIKES if stalled else 1)

    def _strike(self, state: SourceState, error: Interrupted, started: float, weight: int) -> None:
        now = self._clock()
        if error.retry_after is not None and error.retry_after > MAX_RETRY_AFTER:
            state.dropped = f"{error}, and asks to be left alone for {error.retry_after:.0f} s"
            return
        if started >= state.struck_at:
            state.strikes += weight
            state.struck_at = now
        if state.strikes >= MAX_STRIKES:
            state.dropped = str(error)
            return
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (state.strikes - 1)) * self._jitter(0.75, 1.25)
        state.resting_until = now + max(pause, error.retry_after or 0.0)

    def blamed(self) -> tuple[str, ...]:
        """Who sent wrong bytes, for people: nobody else would ever hear of it where another source made up for it."""
        return tuple(
            f"{state.shown} sent wrong bytes of {state.wrong} {'piece' if state.wrong == 1 else 'pieces'}"
            for state in self.states
            if state.wrong
        )

    def report(self, path: str) -> str:
        """What every source had to say about a file, for people."""
        lines = []
        for state in self.states:
            said = state.dropped or state.unsuitable.get(path) or state.last or "not tried"
            lines.append(f"{state.shown}: {said}")
        return "; ".join(lines)


def _expected(state: SourceState) -> float:
    """How long a source is expected to take, in no particular unit.

    One of whom nothing is known goes first until it is in use or has failed, then last.
    """
    if not state.rate:
        used = state.active + state.strikes + state.wrong
        return float(used) if used else -math.inf
    return (state.active + 1) / state.rate * _BLAME**state.wrong

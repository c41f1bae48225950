"""The front: the process through which the runtime is reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from runtime.front.route import Route
    from schemas.observation import FrontSeen


@dataclass(frozen=True, slots=True)
class FrontCounts:
    """What the front is doing, and has done since it was started; over all fronts while one takes over from another."""

    connections: int
    in_flight: int
    """Requests that the runtime has been given and has not answered to the end."""
    held: int
    """Requests that wait for a route."""
    served: int
    """Answers passed on whole."""
    refused: int
    """Requests that were not fit to be served (4xx)."""
    unavailable: int
    """Requests that could not be served for now (503)."""
    failed: int
    """Requests that the engine failed to answer (502, 504)."""
    gone: int
    """Clients that left before their answer ended."""
    cut: int
    """Answers cut short by the engine's failure or the time bound."""
    cut_by_drain: int
    """Answers cut short because the drain deadline passed."""


class Front(Protocol):
    """The process through which the runtime is reached. It outlives the agent, which finds it again."""

    address: Path
    """Where clients find it, whatever serves."""

    def look(self) -> FrontSeen:
        """What is there, without asking it.

        Raises:
            BackendUnavailable: it cannot be seen.
        """
        ...

    def ensure(self) -> None:
        """Have a front with this agent's program and settings take new clients; an older one ends with its last answer.

        Raises:
            StartFailed: it could not be started; whatever listened before goes on.
        """
        ...

    def lead(self, route: Route) -> None:
        """Lead requests along a route, from now on.

        Raises:
            StartFailed: the route cannot be written.
        """
        ...

    def hold(self, instance: str) -> bool:
        """Let requests wait from now on, if they are led to this instance; whether they were.

        Raises:
            StartFailed: the route cannot be written.
        """
        ...

    def drain(self, instance: str, *, seconds: float) -> int:
        """Wait until an instance has answered everything, at most so long; how many requests are left.

        Returns early when stopping is requested.
        """
        ...

    def counts(self) -> FrontCounts | None:
        """What it is doing; None when it does not answer."""
        ...

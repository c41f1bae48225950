"""What the front's connections share: the route, what waits for it, what is counted.

One connection to each client, one to the runtime for each request; one thread, no locks. An answer is passed on as it
comes, framed anew; a reader that is slow holds its own engine connection back, and nobody else's. Memory is bounded: by
connections, by bodies, and by what is buffered for each.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from runtime.front.route import ROUTE_LIMIT, Route

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from runtime.front.client import Client

LOOK_SECONDS: Final = 0.01
"""Between two looks at the route file while requests wait. Nothing looks while none does."""
BODIES: Final = 16
"""Longest bodies that may be in memory at once."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the front is told when it is started; another setting is another front."""

    route: str
    """Path of the route file."""
    allow: tuple[int, ...]
    """User ids of clients."""
    connections: int
    """Clients at once."""
    max_body: int
    """Bytes of a request's body."""


class Relay:
    """The state that all connections share."""

    def __init__(self, settings: Settings, *, report: Callable[[str], None]) -> None:
        """Begin, without any connection.

        Args:
            settings: bounds and places.
            report: told, in one line, what a person should know.
        """
        self.settings = settings
        self.retiring = False
        """Another front has taken the address: connections end with their answers."""
        self.leaving = False
        """No front comes after this one: nothing waits for a runtime any more."""
        self.counts: Counter[str] = Counter()
        self.clients: set[Client] = set()
        self.left = asyncio.Event()
        """Set whenever a client has left."""
        self.answering: Counter[str] = Counter()
        """By instance: requests that it was given and has not answered to the end."""
        self.bodies = 0
        """Bytes of request bodies in memory."""
        self._report = report
        self._route = Route()
        self._seen: tuple[int, ...] = ()
        self._waiting: dict[Client, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.TimerHandle | None = None

    # --- the route ------------------------------------------------------------------------------------------------

    def route(self) -> Route:
        """The route as its file says now: one stat, and a read when it was replaced."""
        try:
            found = os.stat(self.settings.route)  # noqa: PTH116 - once a request
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                with open(self.settings.route, "rb") as file:  # noqa: PTH123 - as above
                    self._route = Route.from_json(file.read(ROUTE_LIMIT))
                self._seen = seen
                asyncio.get_running_loop().call_soon(self.release)
        except FileNotFoundError:
            self._route, self._seen = Route(), ()
        except (OSError, ValueError, TypeError) as error:
            # What was followed so far is better than nothing, until the agent writes it again.
            self._report(f"the route cannot be read: {error}")
        return self._route

    def wait(self, client: Client) -> bool:
        """Let a client wait for the next route; False when too many wait."""
        if client not in self._waiting and len(self._waiting) >= self._route.max_queue:
            return False
        self._waiting[client] = None
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
        return True

    def leave(self, client: Client) -> None:
        """The client waits no longer."""
        self._waiting.pop(client, None)

    def release(self) -> None:
        """Forward what waits, in the order in which it came, once there is somewhere to go."""
        for client in tuple(self._waiting):
            if self._route.state == "holding":
                return
            client.forward()

    def _look(self) -> None:
        self._looking = None
        if self._waiting:
            self.route()
            self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    # --- shared by the connections --------------------------------------------------------------------------------

    def reserve(self, size: int) -> bool:
        """Take memory for a body, if there is some left."""
        if self.bodies + size > BODIES * self.settings.max_body:
            return False
        self.bodies += size
        return True

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine of a connection."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def dismiss(self) -> None:
        """Let go of every client that has no request at the runtime; those that have get its answer."""
        self.retiring = self.leaving = True
        for client in tuple(self.clients):
            client.dismiss()

    async def deserted(self) -> None:
        """Until no client is left."""
        while self.clients:
            self.left.clear()
            await self.left.wait()

    def report(self, message: str) -> None:
        """Tell a person."""
        self._report(message)

    def stats(self) -> dict[str, Any]:
        """What the agent sees."""
        route = self.route()
        return {
            "pid": os.getpid(),
            "retiring": self.retiring,
            "state": route.state,
            "instance": route.instance,
            "connections": len(self.clients),
            "held": len(self._waiting),
            "inFlight": self.answering.total(),
            "inFlightBy": dict(+self.answering),
            **{name: self.counts[name] for name in COUNTED},
        }


COUNTED: Final = ("served", "refused", "unavailable", "failed", "gone", "cut", "cutByDrain")
"""Whole answers; requests refused for what they are; 503s; 502s and 504s; clients that left before their answer ended;
answers cut by the engine's death or the time bound; answers cut because the drain deadline passed."""

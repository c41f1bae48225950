"""A front without a process, for simulated nodes: follows its routes, and remembers what was asked of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from runtime.front.route import Route
from runtime.interfaces import FrontCounts
from schemas.observation import FrontSeen
from schemas.target import FrontLimits


class SimulatedFront:
    """Outlives the agent, like the real one. `busy` are requests that never end by themselves."""

    address = Path("/simulated/front.sock")

    def __init__(self) -> None:
        self.running = False
        self.route = Route()
        self.busy = 0
        self.log: list[str] = []
        """What was asked of it, in order."""
        self._led: set[str] = set()
        """Instances that requests were ever led to."""

    def look(self) -> FrontSeen:
        """What it is."""
        route = self.route
        limits = FrontLimits(
            max_tokens=route.max_tokens, max_queue=route.max_queue, timeout=int(route.timeout), hold=int(route.hold)
        )
        return FrontSeen(self.running, route.state, route.intent, limits)

    def ensure(self) -> None:
        """Run."""
        self.running = True
        self.log.append("start")

    def lead(self, route: Route) -> None:
        """Follow a route."""
        self.route = route
        self._led.add(route.instance)
        self.log.append(f"{route.state} {route.instance}".strip())

    def hold(self, instance: str) -> bool:
        """Let requests wait."""
        if self.route.instance != instance or self.route.state == "none":
            return False
        if self.route.state != "holding":
            self.lead(replace(self.route, state="holding"))
        return True

    def drain(self, instance: str, *, seconds: float) -> int:
        """They are as busy afterwards as before, also where requests are led elsewhere since; others have none."""
        self.log.append(f"drain {instance} {seconds:g}")
        return self.busy if instance in self._led else 0

    def counts(self) -> FrontCounts | None:
        """Nothing but what is busy."""
        return FrontCounts(0, self.busy, 0, 0, 0, 0, 0, 0, 0, 0) if self.running else None

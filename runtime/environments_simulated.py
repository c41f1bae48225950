"""Environments that are installed by saying so; the same protocol as on a disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.digests import digest_bytes
from schemas.errors import EnvironmentChanged, EnvironmentUnavailable
from schemas.observation import StoredEnvironment

if TYPE_CHECKING:
    from schemas.ports import Stop


@dataclass
class SimulatedEnvironments:
    """A disk for environments that outlives the agents."""

    interpreter: str = "simulated 1.0"
    installed: dict[str, StoredEnvironment] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    """Environments whose files somebody changed."""
    unavailable: str = ""
    """Why wheels cannot be had; empty when they can."""
    brings: dict[str, str] = field(default_factory=lambda: {"simulated": "1.0"})

    def list(self) -> dict[str, StoredEnvironment]:
        """What is installed."""
        return dict(self.installed)

    def python(self, environment: str) -> Path:
        """A path that says which."""
        return Path("/runtimes", environment, "python")

    def install(self, environment: str, lock: bytes, *, stop: Stop) -> None:  # noqa: ARG002 - it takes no time
        """Installed, unless it is not there and wheels cannot be had."""
        if self.unavailable and environment not in self.installed:
            raise EnvironmentUnavailable(self.unavailable)
        self.installed.setdefault(environment, StoredEnvironment(environment, digest_bytes(lock), 1000))

    def verify(self, environment: str) -> None:
        """As it was, unless somebody changed it."""
        if environment not in self.installed or environment in self.changed:
            self.installed.pop(environment, None)
            self.changed.discard(environment)
            raise EnvironmentChanged(f"{environment} is not what was installed")

    def packages(self, environment: str) -> dict[str, str]:
        """The same in each."""
        return dict(self.brings) if environment in self.installed else {}

    def remove(self, environment: str) -> None:
        """Gone."""
        self.installed.pop(environment, None)

"""The machine: native environments, and its hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from schemas.observation import Hardware, StoredEnvironment
    from schemas.ports import Stop


class EnvironmentStore(Protocol):
    """Native environments, each installed from one lock, none of them the agent's."""

    interpreter: str
    """What environments are installed for: implementation, version and machine; part of their identity."""

    def list(self) -> dict[str, StoredEnvironment]:
        """The environments that are installed to the end, by digest.

        Raises:
            OSError: they cannot be looked at.
        """
        ...

    def python(self, environment: str) -> Path:
        """The interpreter of an environment, installed or not."""
        ...

    def install(self, environment: str, lock: bytes, *, stop: Stop) -> None:
        """Install what a lock names, whole or not at all. Fine if it is there.

        Args:
            environment: digest of the environment, as `schemas.target.locked_environment` makes it.
            lock: the lock's exact bytes.
            stop: when set, ends soon; what was fetched is kept for the next attempt.

        Raises:
            EnvironmentUnavailable: a wheel is not to be had, is not the one that is locked, or stopping was requested.
            NoSpace: the disk is full.
        """
        ...

    def verify(self, environment: str) -> None:
        """Compare an environment with what was installed: by stat, and by hash where that differs (I2).

        Raises:
            EnvironmentChanged: it is not what was installed, or not installed; it is no longer listed.
        """
        ...

    def packages(self, environment: str) -> dict[str, str]:
        """Versions of what an environment has, by normalised name; empty where it is not installed."""
        ...

    def remove(self, environment: str) -> None:
        """Remove an environment. Fine if it is gone."""
        ...


class HardwareProbe(Protocol):
    """Reads the machine."""

    def read(self) -> Hardware:
        """What the machine is, now."""
        ...

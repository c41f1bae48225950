"""What a container engine says about itself: for people who look for what is wrong. Needs no SDK.

Source: Docker's Engine API, `GET /version` and `GET /info`; Podman answers both on its compatible service.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from runtime.connection import UnixConnection

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

SECONDS: Final = 10.0
"""Bound of one question: Docker asks its plugins before it answers `/info`."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """A container engine, as it describes itself."""

    version: str
    api: tuple[int, int]
    """Newest version of the API that it speaks."""
    storage: str
    """Storage driver."""
    runtimes: tuple[str, ...]
    """OCI runtimes that it knows."""
    warnings: tuple[str, ...]
    """What it warns of, such as limits that the kernel does not offer."""


def describe(socket: Path) -> EngineFacts:
    """Ask an engine what it is.

    Args:
        socket: its API.

    Raises:
        EngineUnreachable: nobody answers, or not as an engine does.
    """
    # Whose socket this is, the owner's configuration says: any process may be behind it.
    # /var/run is a link on most machines, and the way to an engine's instance allows none.
    connection = UnixConnection(socket.resolve(), is_peer=lambda _pid: True)
    version = _object(connection.request("GET", "/version", timeout=SECONDS))
    info = _object(connection.request("GET", "/info", timeout=SECONDS))
    return EngineFacts(
        version=str(version.get("Version", "")),
        api=_numbers(str(version.get("ApiVersion", ""))),
        storage=str(info.get("Driver", "")),
        runtimes=tuple(sorted(_object(info.get("Runtimes")))),
        warnings=tuple(str(item) for item in found) if isinstance(found := info.get("Warnings"), list) else (),
    )


def _object(value: JsonValue) -> dict[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _numbers(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)

"""The route file: which instance the front leads to, within which limits. The agent writes it, the front follows it.

Plain dataclasses and plain JSON on purpose: the front is small, and imports nothing that it can do without.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal

State = Literal["serving", "holding", "none"]

ROUTE_LIMIT: Final = 2**16
"""Bytes of a route file."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests go.

    `serving`: to the instance. `holding`: nowhere yet, they wait for the next route. `none`: nothing serves.
    """

    state: State = "none"
    instance: str = ""
    """Name of the instance."""
    intent: str = ""
    """Id of the intent that created it."""
    engine: str = ""
    """Its engine, which decides what may be asked."""
    socket: str = ""
    """Path of its unix socket on the host."""
    pid: int = 0
    """The process that listens there, as the agent saw it when it checked that it is the instance's."""
    ticks: int = 0
    """When that process was started, clock ticks since boot: its id alone could come to name another."""
    models: tuple[str, ...] = ()
    """Names by which the model may be asked for; the first is what the engine calls it."""
    max_tokens: int = 4096
    """Tokens that one request may ask for."""
    max_queue: int = 64
    """Requests that may wait at once."""
    timeout: float = 120
    """Seconds that an answer may take, from its forwarding to its end."""
    hold: float = 30
    """Seconds that a request may wait for a route."""
    retry_after: int = 5
    """Seconds that a refused client is told to wait."""

    def to_json(self) -> bytes:
        """The file's content."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Route:
        """Read a route.

        Raises:
            ValueError: not what `to_json` writes.
        """
        value = json.loads(content)
        if not isinstance(value, dict) or value.get("state") not in ("serving", "holding", "none"):
            raise ValueError("not a route")
        known: dict[str, Any] = {field.name: value[field.name] for field in fields(cls) if field.name in value}
        known["models"] = tuple(known.get("models", ()))
        return cls(**known)

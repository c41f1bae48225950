"""An engine that answers one thing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import JsonValue


class Scripted:
    """A connection whose other end answers one thing, whatever it is asked."""

    def __init__(self, answer: JsonValue, page: str = "") -> None:
        """Say what will be answered.

        Args:
            answer: to requests.
            page: to whoever reads a text.
        """
        self.answer = answer
        self.page = page
        self.asked: list[tuple[str, str, JsonValue]] = []

    def request(
        self, method: str, path: str, body: JsonValue = None, *, timeout: float, limit: int = 2**22
    ) -> JsonValue:
        """The one thing."""
        self.asked.append((method, path, body))
        return self.answer

    def read(self, path: str, *, timeout: float, limit: int = 2**22) -> str:
        """The one text."""
        self.asked.append(("GET", path, None))
        return self.page

    def peer(self, *, timeout: float) -> int:
        """Nobody's process."""
        return 0

"""What an engine with a short API does not answer: its `answers` say so, and nothing of this is ever called."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from schemas.errors import EngineUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pydantic import JsonValue

    from runtime.interfaces import EngineConnection
    from runtime.validation.evidence import TopTokens
    from schemas.probe import ChatMessage


class ShortApi:
    """The methods of `runtime.interfaces.Engine` that a short API has no answer to."""

    def tokenize(self, connection: EngineConnection, text: str, *, special: bool) -> tuple[int, ...]:
        """Not answered.

        Raises:
            EngineUnreachable: always.
        """
        _cannot(connection, text, special)

    def text(self, connection: EngineConnection, tokens: Sequence[int]) -> str:
        """Not answered.

        Raises:
            EngineUnreachable: always.
        """
        _cannot(connection, tokens)

    def force(
        self, connection: EngineConnection, prompt: Sequence[int], forced: Sequence[int]
    ) -> tuple[TopTokens, ...]:
        """Not answered.

        Raises:
            EngineUnreachable: always.
        """
        _cannot(connection, prompt, forced)

    def sample(
        self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int, seed: int, temperature: float
    ) -> tuple[int, ...]:
        """Not answered.

        Raises:
            EngineUnreachable: always.
        """
        _cannot(connection, prompt, tokens, seed, temperature)

    def chat(
        self,
        connection: EngineConnection,
        messages: Sequence[ChatMessage],
        *,
        schema: Mapping[str, JsonValue],
        call: bool,
    ) -> str:
        """Not answered.

        Raises:
            EngineUnreachable: always.
        """
        _cannot(connection, messages, schema, call)


def _cannot(*_: object) -> NoReturn:
    raise EngineUnreachable("the engine's API has no answer to that")

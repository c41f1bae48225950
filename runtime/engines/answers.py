"""Token ids out of an engine's JSON: never taken for what they should be (an engine may be hostile, or broken)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from schemas.errors import EngineUnreachable

if TYPE_CHECKING:
    from pydantic import JsonValue

MAX_VOCABULARY: Final = 2**31


def token_ids(answer: JsonValue, key: str, *, asked: str, at_most: int | None = None) -> tuple[int, ...]:
    """The list of token ids that an object has under a key.

    Args:
        answer: what the engine answered, or the part of it that should have them.
        key: where they should be.
        asked: the path that was asked, for messages.
        at_most: how many were asked for; None for any number.

    Raises:
        EngineUnreachable: there is no such list, something in it is no token id, or there are too many.
    """
    found = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise EngineUnreachable(f"{asked} answered without token ids")
    tokens: list[int] = []
    for item in found:
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < MAX_VOCABULARY:
            raise EngineUnreachable(f"{asked} answered {ascii(item)[:50]} for a token id")
        tokens.append(item)
    if at_most is not None and len(tokens) > at_most:
        raise EngineUnreachable(f"{asked} answered {len(tokens)} tokens, {at_most} were asked for")
    return tuple(tokens)

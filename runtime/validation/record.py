"""Records a probe: what a trusted engine with a trusted model answers is what every node's must answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from schemas.errors import ValidationFailed
from schemas.probe import ChatMessage, GreedyCase, ProbeSpec, Provenance, TokenizerCase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.interfaces import Engine, EngineConnection

CONVERSATIONS: Final[tuple[tuple[ChatMessage, ...], ...]] = (
    (ChatMessage(role="user", content="Hello."),),
    (
        ChatMessage(role="system", content="Answer in one short sentence."),
        ChatMessage(role="user", content="What is the capital of France?"),
    ),
    (
        ChatMessage(role="user", content="Count: 1, 2, 3"),
        ChatMessage(role="assistant", content="4, 5, 6"),
        ChatMessage(role="user", content="Go on, please!"),
    ),
    (ChatMessage(role="user", content="Grüße, 世界! ¿Qué tal? 🙂\n\tdef f(x): return x**2"),),
)
"""What tokenizers and templates stumble over: a system turn, several turns, other scripts, emoji, white space, code."""

GREEDY_TOKENS: Final = 24
"""Tokens of each continuation. A different model of the same family differs within the first few; 24 times four
prompts is what a second of a slow machine can give."""


def record(
    engine: Engine, connection: EngineConnection, recorded: Provenance, *, tokens: int = GREEDY_TOKENS
) -> ProbeSpec:
    """Ask a running instance, twice, and keep what it answered both times.

    Args:
        engine: how the instance is asked.
        connection: to the instance.
        recorded: what it is.
        tokens: tokens of each continuation.

    Raises:
        EngineUnreachable: it does not answer.
        ValidationFailed: it does not answer the same twice: no probe could be judged by it.
    """
    tokenizer = tuple(
        TokenizerCase(messages=messages, tokens=_twice(engine, connection, messages)) for messages in CONVERSATIONS
    )
    greedy: list[GreedyCase] = []
    for case in tokenizer:
        answer = engine.greedy(connection, case.tokens, tokens=tokens)
        if not answer:
            # A model that ends at once says nothing about its weights.
            continue
        if engine.greedy(connection, case.tokens, tokens=tokens) != answer:
            raise ValidationFailed("the engine continues the same prompt differently each time")
        greedy.append(GreedyCase(prompt=case.tokens, tokens=answer))
    if not greedy:
        raise ValidationFailed("the model ends every conversation at once: there is nothing to tell it by")
    return ProbeSpec(recorded=recorded, tokenizer=tokenizer, greedy=tuple(greedy))


def _twice(engine: Engine, connection: EngineConnection, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
    first = engine.render(connection, messages)
    if engine.render(connection, messages) != first:
        raise ValidationFailed("the engine renders the same conversation differently each time")
    return first

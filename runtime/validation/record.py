"""Records a probe: what a trusted engine with a trusted model answers is what every node's must answer."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

from runtime.validation.evidence import draw
from runtime.validation.judge import ids_difference, told
from runtime.validation.statistics import differences
from runtime.validation.texts import CONVERSATIONS, PASSAGES, TEXTS, TOOL_CONVERSATION, TOOLS
from schemas.digests import digest_text
from schemas.errors import EngineUnreachable, ValidationFailed
from schemas.probe import (
    MAX_TOKENS,
    Distribution,
    ForcedCase,
    GreedyCase,
    ProbeSpec,
    Provenance,
    TextCase,
    TokenizerCase,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from runtime.interfaces import Engine, EngineConnection
    from runtime.validation.calibrate import HonestRun
    from runtime.validation.evidence import TopTokens

GREEDY_TOKENS: Final = 24
"""Tokens of each continuation. A different model of the same family differs within the first few; 24 times four
prompts is what a second of a slow machine can give."""

PROMPT_TOKENS: Final = 16
"""Tokens of a passage that stand before what is forced: enough for attention to have something to attend to."""
FORCED_TOKENS: Final = 24
"""Tokens of each forced case: three or four cases make the first look."""
DRAWN_TEMPERATURE: Final = 0.8
"""Of text that the model writes where a passage cannot be forced: its own words, and not always the same."""
OWN_TEXTS: Final = 12
OWN_WORDS: Final = 200
"""Texts of the vocabulary's own words, and tokens of each: some two thousand merges, in a few kilobytes."""
MAX_TEXT: Final = 2000
CONTROL: Final = re.compile(r"<[^<>]{0,64}>|\[/?[A-Z_]{1,32}\]")
"""What may be the name of a control token: one to vLLM's server, which cannot be told otherwise, and letters like any
others to llama.cpp's. A probe is judged on both."""
DIGITS: Final = 4
"""Digits of a log-probability after the point. What is rounded off has a variance of 1e-9."""


def record(
    engine: Engine,
    connection: EngineConnection,
    recorded: Provenance,
    *,
    tokens: int = GREEDY_TOKENS,
    passages: Sequence[str] = PASSAGES,
    reference: Callable[[Sequence[tuple[Sequence[int], Sequence[int]]]], Sequence[Sequence[Distribution]]]
    | None = None,
) -> ProbeSpec:
    """Ask a running instance, twice where it must not vary, and keep what it answered both times.

    Args:
        engine: how the instance is asked.
        connection: to the instance.
        recorded: what the distributions come from.
        tokens: tokens of each continuation.
        passages: texts whose tokens are forced; none for a probe of continuations alone.
        reference: says the distributions at each of some tokens after a prompt, for each such pair; None takes the
            engine's own.

    Raises:
        EngineUnreachable: it does not answer.
        ValidationFailed: it does not answer the same twice: no probe could be judged by it.
    """
    tokenizer = tuple(
        TokenizerCase(messages=messages, tokens=_twice(partial(engine.render, connection, messages)))
        for messages in CONVERSATIONS
    )
    tokenizer += _with_tools(engine, connection, tokenizer)
    texts = _texts(engine, connection) if "tokenize" in engine.answers else ()
    continuations = _continuations(
        engine, connection, [case.tokens for case in tokenizer[: len(CONVERSATIONS)]], tokens
    )
    if not continuations:
        raise ValidationFailed("the model ends every conversation at once: there is nothing to tell it by")
    if "force" not in engine.answers:
        greedy = tuple(GreedyCase(prompt=prompt, tokens=answer, ends=ends) for prompt, answer, ends in continuations)
        return ProbeSpec(recorded=recorded, tokenizer=tokenizer, texts=texts, greedy=greedy)
    pairs = [(prompt, answer) for prompt, answer, _ in continuations]
    pairs += _passages(engine, connection, passages)
    ask = reference or (lambda given: [_distributions(engine.force(connection, one, two), two) for one, two in given])
    found = ask(pairs)
    greedy = tuple(
        GreedyCase(prompt=prompt, tokens=answer, top=tuple(top), ends=ends)
        for (prompt, answer, ends), top in zip(continuations, found, strict=False)
    )
    forced = tuple(
        ForcedCase(prompt=tuple(prompt), tokens=tuple(given), top=tuple(top))
        for (prompt, given), top in zip(pairs[len(greedy) :], found[len(greedy) :], strict=True)
    )
    return ProbeSpec(recorded=recorded, tokenizer=tokenizer, texts=texts, greedy=greedy, forced=forced)


def _twice(ask: Callable[[], tuple[int, ...]], what: str = "renders the same conversation") -> tuple[int, ...]:
    first = ask()
    if ask() != first:
        raise ValidationFailed(f"the engine {what} differently each time")
    return first


def _with_tools(
    engine: Engine, connection: EngineConnection, plain: Sequence[TokenizerCase]
) -> tuple[TokenizerCase, ...]:
    """A conversation with functions, where the template has a place for them."""
    try:
        found = _twice(lambda: engine.render(connection, TOOL_CONVERSATION, tools=TOOLS))
    except EngineUnreachable:
        # The template refuses them; whether it must is not for a probe to say.
        return ()
    fits = 0 < len(found) <= MAX_TOKENS and all(found != case.tokens for case in plain)
    return (TokenizerCase(messages=TOOL_CONVERSATION, tools=TOOLS, tokens=found),) if fits else ()


def _texts(engine: Engine, connection: EngineConnection) -> tuple[TextCase, ...]:
    """Texts that every tokenizer stumbles over, and texts of this vocabulary's own words, one against the other."""
    found: list[TextCase] = []
    for number, text in enumerate((*TEXTS, *_own_words(engine, connection))):
        # One of them with what the vocabulary puts around a text: a beginning of sequence too many, or too few.
        special = number == 0
        tokens = _twice(partial(engine.tokenize, connection, text, special=special), "encodes the same text")
        if 0 < len(tokens) <= MAX_TOKENS:
            found.append(TextCase(text=text, special=special, tokens=tokens))
    return tuple(found)


def _own_words(engine: Engine, connection: EngineConnection) -> list[str]:
    """Texts made of tokens drawn from the whole vocabulary: what stands together by chance can merge in many ways.

    A swapped pair of merges shows only where both could apply: in plain prose that hardly ever happens.
    """
    size = _vocabulary(engine, connection)
    found = []
    for number in range(OWN_TEXTS):
        drawn = [int(digest_text(f"words/1|{number}|{place}")[-12:], 16) % size for place in range(OWN_WORDS)]
        try:
            text = engine.text(connection, drawn)
        except EngineUnreachable:
            # An id that is not used: the vocabulary has a hole there.
            continue
        # Nothing that a document refuses, and no halves of characters; joined again, so that neighbours can merge.
        kept = "".join(letter for letter in text if letter.isprintable() and letter != "\ufffd")
        kept = CONTROL.sub("", kept)[:MAX_TEXT]
        if kept.strip():
            found.append(kept)
    return found


def _vocabulary(engine: Engine, connection: EngineConnection) -> int:
    """At least how many tokens there are: one more than the largest id in many texts and in what is likely after."""
    encoded = [engine.tokenize(connection, text, special=True)[:PROMPT_TOKENS] for text in TEXTS]
    seen = [token for tokens in encoded for token in tokens]
    if "force" in engine.answers:
        for prompt in filter(None, encoded):
            written = engine.greedy(connection, prompt, tokens=FORCED_TOKENS)
            if written and _can_be_forced(engine, connection, prompt, written):
                likely = engine.force(connection, prompt, written)
                seen += [token for position in likely for token in position.ids]
    return max(seen, default=0) + 1


def _continuations(
    engine: Engine, connection: EngineConnection, prompts: Sequence[tuple[int, ...]], tokens: int
) -> list[tuple[tuple[int, ...], tuple[int, ...], bool]]:
    found = []
    for prompt in prompts:
        answer = _twice(
            partial(engine.greedy, connection, prompt, tokens=tokens),
            "continues the same prompt",
        )
        # A model that ends at once says nothing about its weights.
        if answer:
            found.append((prompt, answer, len(answer) < tokens))
    return found


def _passages(
    engine: Engine, connection: EngineConnection, passages: Sequence[str]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Passages as prompt and what is forced after it; those that come to nothing are left out.

    Where a passage is too short, or the engine cannot be made to write its tokens (llama.cpp: parts of characters),
    what the model itself would write takes its place.
    """
    if "tokenize" not in engine.answers:
        return []
    found = []
    for number, passage in enumerate(passages):
        encoded = engine.tokenize(connection, passage, special=True)
        prompt = encoded[:PROMPT_TOKENS]
        for given in _candidates(engine, connection, encoded, number):
            if len(given) == FORCED_TOKENS and _can_be_forced(engine, connection, prompt, given):
                found.append((prompt, given))
                break
    return found


def _candidates(
    engine: Engine, connection: EngineConnection, encoded: tuple[int, ...], number: int
) -> Iterator[tuple[int, ...]]:
    prompt = encoded[:PROMPT_TOKENS]
    yield encoded[PROMPT_TOKENS : PROMPT_TOKENS + FORCED_TOKENS]
    if "sample" in engine.answers:
        for seed in range(4):
            yield engine.sample(
                connection, prompt, tokens=FORCED_TOKENS, seed=4 * number + seed, temperature=DRAWN_TEMPERATURE
            )
    yield engine.greedy(connection, prompt, tokens=FORCED_TOKENS)


def _can_be_forced(
    engine: Engine, connection: EngineConnection, prompt: tuple[int, ...], given: tuple[int, ...]
) -> bool:
    try:
        found = engine.force(connection, prompt, given)
    except EngineUnreachable:
        # An engine that is gone will say so again at the next question.
        return False
    return tuple(position.forced for position in found) == given


def _distributions(found: Sequence[TopTokens], given: Sequence[int]) -> list[Distribution]:
    """An engine's answer as a reference's.

    Raises:
        ValidationFailed: it did not take the tokens that it was given.
    """
    written = tuple(position.forced for position in found)
    if written != tuple(given):
        raise ValidationFailed(
            f"the engine did not take the tokens that it was given: {ids_difference(given, written)}"
        )
    return [
        Distribution(ids=item.ids, logprobs=tuple(round(value, DIGITS) for value in item.logprobs)) for item in found
    ]


# --- honest runs --------------------------------------------------------------------------------------------------


def answers(
    engine: Engine, connection: EngineConnection, cases: Sequence[ForcedCase], *, seed: str, load: int = 0
) -> list[list[Distribution]]:
    """What an engine answers to every forced case, under some circumstances.

    Args:
        engine: how the instance is asked.
        connection: to the instance.
        cases: the forced cases.
        seed: their order follows from it: what was computed before must not matter.
        load: requests that are answered at the same time besides, which changes how batches are put together.

    Raises:
        EngineUnreachable: it does not answer.
        ValidationFailed: it does not take the tokens that it is given.
    """
    found: dict[int, list[Distribution]] = {}

    def one(number: int) -> None:
        case = cases[number]
        found[number] = _distributions(engine.force(connection, case.prompt, case.tokens), case.tokens)

    def busy(number: int) -> None:
        if "sample" in engine.answers:
            engine.sample(connection, cases[number].prompt, tokens=8, seed=number, temperature=1.0)

    order = draw(seed, len(cases))
    if not load:
        for number in order:
            one(number)
    else:
        with ThreadPoolExecutor(load + 1) as pool:
            work = [pool.submit(task, number) for number in order for task in (one, busy)]
        for item in work:
            item.result()
    return [found[number] for number in range(len(cases))]


def honest_run(
    cases: Sequence[ForcedCase], reference: Sequence[Sequence[Distribution]], found: Sequence[Sequence[Distribution]]
) -> HonestRun:
    """How an honest run's answers differ from a reference's, case by case."""
    return tuple(
        differences(told(case, expected), told(case, answered))
        for case, expected, answered in zip(cases, reference, found, strict=True)
    )

"""Numbers and texts out of an engine's answers.

Never taken for what they should be: an engine may be hostile, or broken.
"""

from __future__ import annotations

import re
from math import isfinite
from typing import TYPE_CHECKING, Final

from runtime.validation.evidence import FLOOR, TOP, TopTokens
from schemas.errors import EngineUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import JsonValue

MAX_VOCABULARY: Final = 2**31
MAX_COUNT: Final = 2**53
"""Counters are floating-point numbers in Prometheus' format: beyond this they no longer count."""

_SAMPLE: Final = re.compile(
    r"^(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{[^\n]*\})?[ \t]+(?P<value>[0-9][0-9.eE+]{0,30})[ \t]*$", re.MULTILINE
)
"""A sample that can be a count, without its labels (Prometheus, "Exposition formats", text-based format)."""


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
    if at_most is not None and len(found) > at_most:
        raise EngineUnreachable(f"{asked} answered {len(found)} tokens, {at_most} were asked for")
    return tuple(token_id(item, asked=asked) for item in found)


def said(answer: JsonValue, key: str, *, asked: str) -> str:
    """The text that an object has under a key.

    Raises:
        EngineUnreachable: there is none.
    """
    found = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(found, str):
        raise EngineUnreachable(f"{asked} answered without a text")
    return found


def token_id(value: JsonValue, *, asked: str) -> int:
    """One token id.

    Raises:
        EngineUnreachable: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MAX_VOCABULARY:
        raise EngineUnreachable(f"{asked} answered {ascii(value)[:50]} for a token id")
    return value


ROUNDING: Final = 1e-3
"""How far above zero a logarithm of a probability may come out: some engines compute it in 16 bits."""


def log_probability(value: JsonValue, *, asked: str) -> float:
    """One natural logarithm of a probability, no less than `FLOOR`.

    Raises:
        EngineUnreachable: it is none.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value) or value > ROUNDING:
        raise EngineUnreachable(f"{asked} answered {ascii(value)[:50]} for a log-probability")
    return max(min(float(value), 0.0), FLOOR)


def top_tokens(forced: int, logprob: float, listed: Iterable[tuple[int, float]], *, asked: str) -> TopTokens:
    """A position's distribution, in order: the likeliest first, ids in order where they are as likely.

    Args:
        forced: the token that stands there.
        logprob: its log-probability.
        listed: the most likely tokens with theirs, in any order; what is beyond `TOP` is left out.
        asked: the path that was asked, for messages.

    Raises:
        EngineUnreachable: a token is listed twice, or there are fewer than two.
    """
    found = sorted(listed, key=lambda pair: (-pair[1], pair[0]))[:TOP]
    ids = tuple(token for token, _ in found)
    if len(set(ids)) != len(ids):
        raise EngineUnreachable(f"{asked} listed a token twice")
    if len(ids) < 2:  # noqa: PLR2004 - a distribution of one token says nothing
        raise EngineUnreachable(f"{asked} listed {len(ids)} tokens, {TOP} were asked for")
    return TopTokens(forced, logprob, ids, tuple(value for _, value in found))


def count(answer: JsonValue, key: str, *, asked: str) -> int:
    """The count that an object has under a key.

    Args:
        answer: what the engine answered, or the part of it that should have the count.
        key: where it should be.
        asked: the path that was asked, for messages.

    Raises:
        EngineUnreachable: there is none.
    """
    found = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < MAX_COUNT:
        raise EngineUnreachable(f"{asked} answered {ascii(found)[:50]} for the count {key}")
    return found


def metrics(text: str, names: Sequence[str], *, asked: str) -> tuple[int, ...]:
    """Counts out of a page of metrics, each summed over its labels (one engine may have several workers).

    Args:
        text: in Prometheus' text format.
        names: of the metrics.
        asked: the path that was asked, for messages.

    Raises:
        EngineUnreachable: one of them is missing, or is no count.
    """
    sums: dict[str, float] = {}
    for sample in _SAMPLE.finditer(text):
        name = sample["name"]
        if name in names:
            try:
                sums[name] = sums.get(name, 0.0) + float(sample["value"])
            except ValueError:
                raise EngineUnreachable(f"{asked} answered {sample['value']} for the count {name}") from None
    for name in names:
        if not sums.get(name, MAX_COUNT) < MAX_COUNT:
            raise EngineUnreachable(f"{asked} answered without the count {name}")
    return tuple(int(sums[name]) for name in names)

"""Numbers out of an engine's answers: never taken for what they should be (an engine may be hostile, or broken)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from schemas.errors import EngineUnreachable

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    tokens: list[int] = []
    for item in found:
        if not isinstance(item, int) or isinstance(item, bool) or not 0 <= item < MAX_VOCABULARY:
            raise EngineUnreachable(f"{asked} answered {ascii(item)[:50]} for a token id")
        tokens.append(item)
    if at_most is not None and len(tokens) > at_most:
        raise EngineUnreachable(f"{asked} answered {len(tokens)} tokens, {at_most} were asked for")
    return tuple(tokens)


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

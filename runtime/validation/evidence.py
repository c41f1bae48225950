"""What a running model answered, as plain values: engines make it, statistics compare it, the judge reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, Final

from schemas.digests import digest_text

TOP: Final = 20
"""Most likely tokens that an engine is asked for at each position. vLLM refuses more unless it is started otherwise."""

FLOOR: Final = -60.0
"""Log-probabilities below this are taken for it. A chance of e^-60 is none, and engines say "none" in ways of their
own: llama.cpp takes the logarithm of a 32-bit probability that may be zero (-3.4e38), vLLM says -9999."""

SAMPLING_TEMPERATURE: Final = 2.0
"""High enough that a sampler that obeys it can hardly draw the likeliest token every time."""
SAMPLED_TOKENS: Final = 16
"""Tokens of each draw."""


@dataclass(frozen=True, slots=True)
class TopTokens:
    """The next-token distribution at one position, as far as it was told, and the token that was put there.

    Log-probabilities are natural logarithms under the model's own distribution: temperature 1, before any sampler.
    """

    forced: int
    """Id of the token that stands at this position, whatever the model would have written."""
    logprob: float
    """Its log-probability, whether or not it is among the most likely."""
    ids: tuple[int, ...]
    """Ids of the most likely tokens, the likeliest first, each once."""
    logprobs: tuple[float, ...]
    """Their log-probabilities: as many, finite, none above zero, none above the one before it."""


@dataclass(frozen=True, slots=True)
class Platform:
    """What computes: thresholds belong to one of these, and are never pooled."""

    engine: str
    version: str
    architecture: str
    """What decides how it rounds: `cuda/9.0`, `amd64/avx512`."""
    dtype: str
    """Numbers that it computes with, as the engine names them; `stored` for the file's own."""


@dataclass(frozen=True, slots=True)
class Forced:
    """Answer to one forced case."""

    case: int
    """Its number in the probe, from 0."""
    positions: tuple[TopTokens, ...]


@dataclass(frozen=True, slots=True)
class Sampled:
    """Three continuations of one prompt, drawn at `SAMPLING_TEMPERATURE`: two with one seed, one with another."""

    case: int
    """The greedy case whose prompt it is."""
    first: tuple[int, ...]
    again: tuple[int, ...]
    other: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the model answered, in the order in which it was asked. A tuple that is not full was not asked on."""

    rendered: tuple[tuple[int, ...], ...] = ()
    """Token ids of each rendered conversation."""
    encoded: tuple[tuple[int, ...], ...] = ()
    """Token ids of each plain text."""
    forced: tuple[Forced, ...] = ()
    """Distributions, of the forced cases that were drawn."""
    continued: tuple[tuple[int, ...], ...] = ()
    """Token ids of each greedy continuation."""
    cached: tuple[int, ...] | None = None
    """Second half of the first greedy continuation, after its first half had just been computed, caches allowed."""
    sampled: tuple[Sampled, ...] = ()
    """What the sampler drew."""
    tasks: tuple[tuple[str, str], ...] = ()
    """By task that the model claims: the text that it answered."""
    first_token: float | None = None
    """Seconds until the first token; None where the probe sets no limit."""
    tokens_per_second: float | None = None
    """Over the longest continuation; None where the probe sets no limit."""

    def spent(self) -> int:
        """Tokens that the model had to compute one by one for it, forced ones included."""
        parts = [len(answer.positions) for answer in self.forced]
        parts += [len(answer) for answer in self.continued]
        parts += [len(draw) for item in self.sampled for draw in (item.first, item.again, item.other)]
        return sum(parts) + len(self.cached or ())

    def to_json(self) -> str:
        """The canonical text, over which the digest is taken: one line, keys in order."""
        # Not `asdict`, which copies every number of every position: a tenth of a second for an ordinary validation.
        return json.dumps(self, default=_by_name, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _by_name(part: Any) -> dict[str, Any]:
    """A part of the evidence as JSON takes it."""
    return {field.name: getattr(part, field.name) for field in fields(part)}


def draw(seed: str, count: int) -> tuple[int, ...]:
    """Numbers from 0 to `count`, in an order that follows from a seed.

    Which cases are asked must not be known before: whoever forwards some and answers others from a list would pass.
    """
    return tuple(sorted(range(count), key=lambda number: digest_text(f"draw/1|{seed}|{number}")))

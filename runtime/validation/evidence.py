"""What a running model answered, as plain values: engines make it, statistics compare it, the judge reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

TOP: Final = 20
"""Most likely tokens that an engine is asked for at each position. vLLM refuses more unless it is started otherwise."""

FLOOR: Final = -60.0
"""Log-probabilities below this are taken for it. A chance of e^-60 is none, and engines say "none" in ways of their
own: llama.cpp takes the logarithm of a 32-bit probability that may be zero (-3.4e38), vLLM says -9999."""


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

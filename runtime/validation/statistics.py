"""How far a served model's next-token distributions are from the reference's. Pure, and without numpy.

Both were teacher-forced through the same token ids, so position by position they speak of the same question. For a
position, with log-probabilities p (reference) and q (served):

    difference   d[i] = q[i] - p[i]               for each token i that either lists
    variance     mean((d[i] - mean(d))^2)          the centred variance: the strongest statistic that is known
    squared      mean(d[i]^2)                      also sees what moves all of them together

Centring takes out the normaliser, log(sum(exp(logits))), which gathers the rounding of the whole vocabulary and is most
of what two honest engines differ by; what stays is the disagreement about tokens *relative to each other*, which
quantised, perturbed or other weights cannot hide. Both are means over positions, so that thresholds do not depend on
how many there were except by their spread.

Where only one side lists a token, the other is known to give it at most the least that it lists: the difference that
is taken is the least that both lists allow, zero included. So a token that fell off the end of a list through rounding
counts next to nothing, and a list of wholly other tokens counts in full.

Source of the idea: log-probability tests of served models (Token-DiFR, arXiv 2511.20621, compares tokens under a shared
seed; "Model Equality Testing", arXiv 2410.20247, compares samples). That the centred variance over the server's own top
20 is stronger than mean |d|, greedy agreement and their sequential tests was measured on this problem; `docs/adr/0021`
has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import fsum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from runtime.validation.evidence import TopTokens

GAP: Final = 0.1
"""Lead, in natural logarithms, that the reference's likeliest token must have before another one in its place is a
mismatch: with less, honest rounding decides between them."""


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """How one position differs."""

    variance: float
    """Centred variance of the differences, in squared natural logarithms."""
    squared: float
    """Mean squared difference, in squared natural logarithms."""
    decided: bool
    """Whether the reference's likeliest token leads by more than `GAP`."""
    mismatch: bool
    """Whether it is decided and the served model's likeliest token is another one."""
    spread: float
    """Served: how far the likeliest token is above the least likely listed, in natural logarithms."""
    reference_spread: float
    """The same for the reference, over as many tokens."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Differences over a number of positions: what thresholds are about."""

    tokens: int
    """Positions compared."""
    variance: float
    """Mean of the centred variances; 0 where there are none."""
    squared: float
    """Mean of the mean squared differences; 0 where there are none."""
    decided: int
    """Positions at which the reference is decided."""
    mismatches: int
    """Decided positions at which the served model prefers another token."""
    spread: float
    """Mean spread, served, over the mean spread of the reference: 1 for the same model, 0 for uniform answers."""


def difference(reference: TopTokens, served: TopTokens) -> TokenDifference:
    """Compare two distributions of the same position.

    Args:
        reference: at least two tokens.
        served: at least two tokens.

    Raises:
        ValueError: they are about different tokens, or one lists fewer than two.
    """
    if reference.forced != served.forced:
        raise ValueError(f"token {served.forced} stands where {reference.forced} should")
    if min(len(reference.ids), len(served.ids)) < 2:  # noqa: PLR2004 - a variance needs two
        raise ValueError("a distribution of fewer than two tokens says nothing")
    told = dict(zip(reference.ids, reference.logprobs, strict=True))
    answered = dict(zip(served.ids, served.logprobs, strict=True))
    reference_least, served_least = reference.logprobs[-1], served.logprobs[-1]
    differences = [
        logprob - told[token] if token in told else max(logprob - reference_least, 0.0)
        for token, logprob in answered.items()
    ]
    # Tokens of the reference's that the server does not list: as many as were asked for, however many it knows.
    differences += [
        min(served_least - told[token], 0.0) for token in reference.ids[: len(served.ids)] if token not in answered
    ]
    count = len(differences)
    mean = fsum(differences) / count
    decided = reference.logprobs[0] - reference.logprobs[1] > GAP
    width = min(len(reference.ids), len(served.ids)) - 1
    return TokenDifference(
        variance=fsum((value - mean) ** 2 for value in differences) / count,
        squared=fsum(value**2 for value in differences) / count,
        decided=decided,
        mismatch=decided and reference.ids[0] != served.ids[0],
        spread=served.logprobs[0] - served.logprobs[width],
        reference_spread=reference.logprobs[0] - reference.logprobs[width],
    )


def differences(reference: Sequence[TopTokens], served: Sequence[TopTokens]) -> tuple[TokenDifference, ...]:
    """Compare a case, position by position.

    Raises:
        ValueError: they are not of one length, or a position cannot be compared.
    """
    if len(reference) != len(served):
        raise ValueError(f"{len(served)} of {len(reference)} positions")
    return tuple(difference(one, other) for one, other in zip(reference, served, strict=True))


def summarise(found: Iterable[TokenDifference]) -> Summary:
    """Means and counts over positions, of however many cases."""
    items = tuple(found)
    count = max(len(items), 1)
    reference_spread = fsum(item.reference_spread for item in items)
    return Summary(
        tokens=len(items),
        variance=fsum(item.variance for item in items) / count,
        squared=fsum(item.squared for item in items) / count,
        decided=sum(item.decided for item in items),
        mismatches=sum(item.mismatch for item in items),
        spread=fsum(item.spread for item in items) / reference_spread if reference_spread > 0 else 1.0,
    )


UNIFORM: Final = 0.1
"""Below this share of the reference's spread, answers say next to nothing. Honest engines, and every other model that
was tried, stay above 0.5; a server whose logits are corrupted answers 0."""


def uniform(summary: Summary) -> bool:
    """Whether the served model prefers nothing: a corrupted server can answer with finite, even log-probabilities."""
    return summary.tokens > 0 and summary.spread < UNIFORM

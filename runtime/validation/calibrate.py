"""Chooses thresholds from honest runs: what they come to in thousands of draws, times a margin. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from random import Random
from typing import TYPE_CHECKING, Final

from schemas.probe import Calibration, Look

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.validation.evidence import Platform
    from runtime.validation.statistics import TokenDifference

MARGIN: Final = 1.3
"""What honest quantiles are multiplied by. Thresholds that were chosen on some prompts held on others with 1.3."""
FALSE_REJECTS: Final = 0.001
"""Share of honest validations that may be rejected."""
ACCEPT_QUANTILE: Final = 0.9
"""Share of honest draws that pass at a look (before the margin), so that most validations end with the first one."""
LOOKS: Final = (96, 192, 320)
"""Numbers of tokens at which a validation may end. Eight-bit weights need about 100; 320 is what fits the budget of 600
tokens beside continuations and samples."""
FLOOR_VARIANCE: Final = 1e-6
"""Least threshold of the variance: engines that repeat bit by bit have none of their own, and references are written
with four digits."""
FLOOR_SQUARED: Final = 1e-5
"""Least threshold of the squared difference, which has the normaliser's rounding in it."""
FLOOR_MISMATCHES: Final = 1
"""Least number of other likeliest tokens that is allowed: that none was seen in a few honest runs does not make one a
proof, and a fault that moves what is likeliest moves the variance long before."""


@dataclass(frozen=True, slots=True)
class _Sum:
    tokens: int
    variance: float
    squared: float
    mismatches: int

    def plus(self, other: _Sum) -> _Sum:
        return _Sum(
            self.tokens + other.tokens,
            self.variance + other.variance,
            self.squared + other.squared,
            self.mismatches + other.mismatches,
        )


HonestRun = tuple[tuple["TokenDifference", ...], ...]
"""How one honest run over all forced cases differs from the reference, case by case."""


def calibrate(
    runs: Sequence[HonestRun],
    platform: Platform,
    *,
    margin: float = MARGIN,
    false_rejects: float = FALSE_REJECTS,
    sizes: Sequence[int] = LOOKS,
) -> Calibration:
    """Thresholds for one platform.

    A draw is what a validation does: cases at random, as one run answered them, up to each look. A case may come twice:
    the recorded cases stand for all that could have been, and drawing each once would know them too well. Quantiles are
    over three thousand draws or more, never over single tokens: their tails are what matters. They are each run's own,
    and the widest counts: a node serves under one circumstance all the time, and must not be judged by the mean of all.

    Args:
        runs: honest runs over the same cases, each under other circumstances.
        platform: what they ran on.
        margin: at least 1.3.
        false_rejects: share of honest validations that may be rejected, over all looks.
        sizes: numbers of tokens of the looks; those beyond what the cases have become one look over all of them.

    Raises:
        ValueError: there is no run, or none has a position.
    """
    pools = [[_sum(case) for case in run] for run in runs]
    total = sum(item.tokens for item in pools[0]) if pools else 0
    if total == 0:
        raise ValueError("thresholds need an honest run")
    bounds = sorted({min(size, total) for size in sizes})
    draws = max(3000, ceil(3 / false_rejects))
    quantile = 1 - false_rejects / len(bounds)
    reached = [_drawn(pool, bounds, draws, seed=f"calibration/2|{total}|{number}") for number, pool in enumerate(pools)]
    looks = [
        _look(bound, [run[place] for run in reached], quantile, margin, last=bound == bounds[-1])
        for place, bound in enumerate(bounds)
    ]
    return Calibration(
        engine=platform.engine,
        version=platform.version,
        architecture=platform.architecture,
        dtype=platform.dtype,
        samples=sum(item.tokens for run in pools for item in run),
        runs=len(runs),
        margin=margin,
        false_rejects=false_rejects,
        looks=tuple(looks),
    )


def _sum(case: Sequence[TokenDifference]) -> _Sum:
    return _Sum(
        len(case),
        sum(item.variance for item in case),
        sum(item.squared for item in case),
        sum(item.mismatch for item in case),
    )


def _drawn(pool: Sequence[_Sum], bounds: Sequence[int], draws: int, *, seed: str) -> list[list[_Sum]]:
    """By look: what each draw from one run has come to there."""
    random = Random(seed)  # noqa: S311 - repeatable, and nothing secret
    cases = [item for item in pool if item.tokens]
    reached: list[list[_Sum]] = [[] for _ in bounds]
    for _ in range(draws):
        so_far, place = _Sum(0, 0.0, 0.0, 0), 0
        while place < len(bounds):
            so_far = so_far.plus(random.choice(cases))
            while place < len(bounds) and so_far.tokens >= bounds[place]:
                reached[place].append(so_far)
                place += 1
    return reached


def _look(bound: int, runs: Sequence[Sequence[_Sum]], quantile: float, margin: float, *, last: bool) -> Look:
    def widest(measure: Callable[[_Sum], float], share: float) -> float:
        return max(_at(sorted(map(measure, found)), share) for found in runs)

    reject = max(widest(_variance, quantile) * margin, FLOOR_VARIANCE)
    # At the bound there is nothing left to ask: what is not rejected passes.
    accept = reject if last else max(widest(_variance, ACCEPT_QUANTILE) * margin, FLOOR_VARIANCE)
    return Look(
        tokens=bound,
        accept=float(f"{min(accept, reject):.4g}"),
        reject=float(f"{reject:.4g}"),
        squared=float(f"{max(widest(_squared, quantile) * margin, FLOOR_SQUARED):.4g}"),
        mismatches=max(ceil(widest(_mismatches, quantile) * margin), FLOOR_MISMATCHES),
    )


def _variance(drawn: _Sum) -> float:
    return drawn.variance / drawn.tokens


def _squared(drawn: _Sum) -> float:
    return drawn.squared / drawn.tokens


def _mismatches(drawn: _Sum) -> float:
    return drawn.mismatches


def _at(values: Sequence[float], quantile: float) -> float:
    """The smallest value that at least this share of all does not exceed."""
    return values[min(ceil(quantile * len(values)), len(values)) - 1]

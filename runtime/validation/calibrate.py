"""Chooses thresholds from honest runs: what they come to in thousands of draws, times a margin. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from random import Random
from typing import TYPE_CHECKING, Final

from schemas.probe import Calibration, Look

if TYPE_CHECKING:
    from collections.abc import Sequence

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

    A draw is what a validation does: cases at random, each as one of the runs answered it, up to each look. A case may
    come twice: the recorded cases stand for all that could have been, and drawing each once would know them too well.
    Quantiles are over three thousand draws or more, never over single tokens: their tails are what matters.

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
    random = Random(f"calibration/1|{total}|{len(runs)}")  # noqa: S311 - repeatable, and nothing secret
    reached: list[list[_Sum]] = [[] for _ in bounds]
    numbers = [number for number, item in enumerate(pools[0]) if item.tokens]
    for _ in range(draws):
        so_far, place = _Sum(0, 0.0, 0.0, 0), 0
        while place < len(bounds):
            so_far = so_far.plus(random.choice(pools)[random.choice(numbers)])
            while place < len(bounds) and so_far.tokens >= bounds[place]:
                reached[place].append(so_far)
                place += 1
    quantile = 1 - false_rejects / len(bounds)
    looks = [
        _look(bound, found, quantile, margin, last=bound == bounds[-1])
        for bound, found in zip(bounds, reached, strict=True)
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


def _look(bound: int, found: Sequence[_Sum], quantile: float, margin: float, *, last: bool) -> Look:
    variances = sorted(item.variance / item.tokens for item in found)
    squares = sorted(item.squared / item.tokens for item in found)
    mismatches = sorted(item.mismatches for item in found)
    reject = max(_at(variances, quantile) * margin, FLOOR_VARIANCE)
    # At the bound there is nothing left to ask: what is not rejected passes.
    accept = reject if last else max(_at(variances, ACCEPT_QUANTILE) * margin, FLOOR_VARIANCE)
    return Look(
        tokens=bound,
        accept=float(f"{min(accept, reject):.4g}"),
        reject=float(f"{reject:.4g}"),
        squared=float(f"{max(_at(squares, quantile) * margin, FLOOR_SQUARED):.4g}"),
        mismatches=ceil(_at(mismatches, quantile) * margin),
    )


def _at(values: Sequence[float], quantile: float) -> float:
    """The smallest value that at least this share of all does not exceed."""
    return values[min(ceil(quantile * len(values)), len(values)) - 1]

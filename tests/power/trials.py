"""Draws validations from what engines answered once, and counts how they end. The judging is the product's own."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, lgamma, log, log1p
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from runtime.host import StopEvent, SystemClock
from runtime.validation.run import validate
from schemas.digests import digest_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.validation.evidence import Platform
    from schemas.probe import ProbeDocument
    from tests.power.serving import Remembered

CONFIDENCE: Final = 0.95


@dataclass(frozen=True)
class Numbers:
    """How many validations are drawn."""

    faults: int
    """For each fault."""
    honest: int
    """Of honest servers."""


@dataclass(frozen=True)
class Count:
    """How so many validations ended."""

    trials: int
    rejected: int
    inconclusive: int
    tokens: float
    """Median number spent."""
    variance: float
    """Median of the statistic, where there was one."""
    threshold: float
    """What it was last compared with."""
    tests: dict[str, int]
    """By the test that rejected."""

    def share(self) -> float:
        """Rejected of all."""
        return self.rejected / self.trials

    def interval(self) -> tuple[float, float]:
        """Where the share lies with 95 % confidence."""
        return clopper_pearson(self.rejected, self.trials)


def trials(
    engines: Sequence[Remembered],
    probe: ProbeDocument,
    platform: Platform,
    count: int,
    *,
    connection: Any = None,
    name: str = "trial",
) -> Count:
    """Validate so many times, each with its own seed, against one engine after the other.

    A trial is one seeded draw of cases from the probe, judged in full by `validate`; the engines answer from memory.
    """
    clock, stop = SystemClock(), StopEvent()
    rejected = inconclusive = 0
    tokens: list[int] = []
    variances: list[float] = []
    threshold = 0.0
    tests: dict[str, int] = {}
    for number in range(count):
        seed = digest_text(f"power/1|{name}|{number}").removeprefix("blake3:")
        verdict, _evidence = validate(
            engines[number % len(engines)], connection, probe, platform=platform, seed=seed, clock=clock, stop=stop
        )
        tokens.append(verdict.tokens)
        rejected += verdict.outcome == "fail"
        inconclusive += verdict.outcome == "inconclusive"
        for finding in verdict.findings:
            if finding.test == "weights" and finding.statistic is not None:
                variances.append(finding.statistic)
                threshold = finding.threshold or threshold
            if finding.outcome == "fail":
                tests[finding.test] = tests.get(finding.test, 0) + 1
    return Count(
        trials=count,
        rejected=rejected,
        inconclusive=inconclusive,
        tokens=median(tokens),
        variance=median(variances) if variances else 0.0,
        threshold=threshold,
        tests=tests,
    )


def clopper_pearson(hits: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Exact interval for a share; never shorter than it says.

    Source: C. J. Clopper and E. S. Pearson, Biometrika 26 (1934): the shares at which as many hits or more, or as many
    or fewer, would be as rare as half of what the confidence leaves.
    """
    tail = (1 - confidence) / 2
    lower = 0.0 if hits == 0 else _root(lambda share: 1 - _at_most(hits - 1, trials, share) - tail)
    upper = 1.0 if hits == trials else _root(lambda share: tail - _at_most(hits, trials, share))
    return lower, upper


def _root(rising: Any) -> float:
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def _at_most(hits: int, trials: int, share: float) -> float:
    """Chance of so many hits or fewer."""
    if share in {0.0, 1.0}:
        return float(share < 1 or hits >= trials)
    total = 0.0
    for number in range(hits + 1):
        ways = lgamma(trials + 1) - lgamma(number + 1) - lgamma(trials - number + 1)
        total += exp(ways + number * log(share) + (trials - number) * log1p(-share))
    return min(total, 1.0)

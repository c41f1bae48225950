"""Thresholds from honest runs: what they must hold, on draws that they were not made from."""

from __future__ import annotations

from random import Random

import pytest

from runtime.validation.calibrate import FLOOR_MISMATCHES, FLOOR_VARIANCE, HonestRun, calibrate
from runtime.validation.statistics import TokenDifference
from tests.runtime.validation.probes import PLATFORM


def run(seed: int, *, scale: float, cases: int = 24, length: int = 24, mismatches: float = 0.0) -> HonestRun:
    """An honest run whose positions vary by an exponential distribution: many small ones, some large."""
    random = Random(seed)
    return tuple(
        tuple(
            TokenDifference(
                variance=scale * random.expovariate(1),
                squared=2 * scale * random.expovariate(1),
                decided=True,
                mismatch=random.random() < mismatches,
                spread=5.0,
                reference_spread=5.0,
            )
            for _ in range(length)
        )
        for _ in range(cases)
    )


def mean(cases: HonestRun, numbers: list[int], tokens: int) -> float:
    """What a validation would see."""
    found = [item.variance for number in numbers for item in cases[number]][:tokens]
    return sum(found) / len(found)


def test_other_honest_runs_stay_within_and_a_doubled_variance_does_not() -> None:
    """Thresholds of four runs, two thousand draws of a fifth: one in a thousand at most; twice the spread is seen."""
    thresholds = calibrate([run(seed, scale=1e-4) for seed in range(4)], PLATFORM)
    fresh, doubled = run(99, scale=1e-4), run(98, scale=2e-4)
    random = Random(5)
    last = thresholds.looks[-1]
    rejected = passed = 0
    for _ in range(2000):
        numbers = random.sample(range(24), 24)
        rejected += any(mean(fresh, numbers, look.tokens) > look.reject for look in thresholds.looks)
        passed += mean(doubled, numbers, last.tokens) <= last.accept
    assert rejected <= 2
    assert passed == 0


def test_the_widest_honest_run_is_not_diluted_by_the_others() -> None:
    """A node that always runs under the widest of four circumstances is not rejected for it: thresholds are its own."""
    narrow = [run(seed, scale=1e-6) for seed in range(3)]
    wide = run(7, scale=1e-4)
    thresholds, alone = calibrate([*narrow, wide], PLATFORM), calibrate([wide], PLATFORM)
    for one, other in zip(thresholds.looks, alone.looks, strict=True):
        assert one.reject == pytest.approx(other.reject, rel=0.1)
        assert one.accept == pytest.approx(other.accept, rel=0.1)


def test_looks_end_with_what_there_is() -> None:
    """A small pool has fewer looks; the last one leaves nothing open."""
    thresholds = calibrate([run(1, scale=1e-4, cases=5)], PLATFORM)
    assert [look.tokens for look in thresholds.looks] == [96, 120]
    assert thresholds.looks[-1].accept == thresholds.looks[-1].reject
    assert thresholds.looks[0].accept < thresholds.looks[0].reject
    assert (thresholds.samples, thresholds.runs) == (120, 1)


def test_engines_that_repeat_bit_by_bit_have_a_floor() -> None:
    """What is rounded off in the document is no fault."""
    thresholds = calibrate([run(1, scale=0.0)], PLATFORM)
    assert {look.reject for look in thresholds.looks} == {FLOOR_VARIANCE}
    assert {look.mismatches for look in thresholds.looks} == {FLOOR_MISMATCHES}


def test_the_margin_is_on_top() -> None:
    """Twice the margin, twice the thresholds; honest mismatches are allowed for as well."""
    runs = [run(seed, scale=1e-4, mismatches=0.01) for seed in range(3)]
    one, two = calibrate(runs, PLATFORM), calibrate(runs, PLATFORM, margin=2.6)
    for narrow, wide in zip(one.looks, two.looks, strict=True):
        assert wide.reject == pytest.approx(2 * narrow.reject, rel=1e-3)
        assert wide.mismatches >= narrow.mismatches > 0


def test_it_is_the_same_each_time() -> None:
    """Chance is seeded: who records twice gets the same document."""
    runs = [run(1, scale=1e-4)]
    assert calibrate(runs, PLATFORM) == calibrate(runs, PLATFORM)


def test_nothing_is_no_calibration() -> None:
    """Thresholds of no honest run would be made up."""
    for runs in ([], [()], [((),)]):
        with pytest.raises(ValueError, match="honest run"):
            calibrate(runs, PLATFORM)

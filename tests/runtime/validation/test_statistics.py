"""How far two models' distributions are apart: the formula by hand, and what it must not be fooled by."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runtime.validation.evidence import TopTokens
from runtime.validation.statistics import difference, differences, summarise, uniform


def top(*pairs: tuple[int, float], forced: int = 1) -> TopTokens:
    """A distribution, the likeliest first."""
    return TopTokens(forced, -1.0, tuple(token for token, _ in pairs), tuple(value for _, value in pairs))


REFERENCE = top((1, -0.5), (2, -1.0), (3, -3.0), (4, -4.0))


class TestDifference:
    """One position."""

    def test_the_same_answer_differs_by_nothing(self) -> None:
        """All zero, whatever it is."""
        found = difference(REFERENCE, REFERENCE)
        assert (found.variance, found.squared, found.mismatch) == (0.0, 0.0, False)

    def test_the_formula(self) -> None:
        """By hand: differences 0.1, -0.1, 0.3, 0.1, mean 0.1; squared deviations 0, 0.04, 0.04, 0."""
        found = difference(REFERENCE, top((1, -0.4), (2, -1.1), (3, -2.7), (4, -3.9)))
        assert found.variance == pytest.approx(0.02)
        assert found.squared == pytest.approx((0.01 + 0.01 + 0.09 + 0.01) / 4)

    def test_what_moves_all_of_them_is_centred_out(self) -> None:
        """A shift of the normaliser is no variance; the squared difference still sees it."""
        shifted = replace(REFERENCE, logprobs=tuple(value - 0.25 for value in REFERENCE.logprobs))
        found = difference(REFERENCE, shifted)
        assert found.variance == pytest.approx(0)
        assert found.squared == pytest.approx(0.0625)

    def test_a_token_that_fell_off_the_end_counts_by_the_least_it_can(self) -> None:
        """Rounding swaps the last two of the list: what is not listed is at most the least that is."""
        served = top((1, -0.5), (2, -1.0), (3, -3.0), (5, -3.98))
        found = difference(REFERENCE, served)
        # Token 5 is at most -4.0 in the reference: 0.02 at least. Token 4 is at most -3.98 when served: nothing known.
        assert found.squared == pytest.approx(0.02**2 / 5)

    def test_wholly_other_tokens_count_in_full(self) -> None:
        """No token in common: a flat list, and a peaked one."""
        for served in (top((7, -5.0), (8, -5.0), (9, -5.0), (10, -5.0)), top((7, -0.1), (8, -3.0), (9, -4.0))):
            found = difference(REFERENCE, served)
            assert found.variance > 1
            assert found.mismatch

    def test_a_mismatch_needs_a_lead(self) -> None:
        """Where the reference all but hesitates, rounding may decide."""
        close = top((1, -0.7), (2, -0.75), (3, -5.0))
        swapped = top((2, -0.7), (1, -0.75), (3, -5.0))
        assert not difference(close, swapped).decided
        assert not difference(close, swapped).mismatch
        assert difference(REFERENCE, swapped).mismatch

    def test_distributions_of_different_positions_are_not_compared(self) -> None:
        """The forced token says which position it is."""
        with pytest.raises(ValueError, match="token 9 stands where 1 should"):
            difference(REFERENCE, replace(REFERENCE, forced=9))
        with pytest.raises(ValueError, match="fewer than two"):
            difference(REFERENCE, top((1, -0.5)))
        with pytest.raises(ValueError, match="1 of 2 positions"):
            differences((REFERENCE, REFERENCE), (REFERENCE,))

    def test_a_longer_reference_knows_more(self) -> None:
        """A token beyond the server's list is compared by what the reference knows; the rest is not missed."""
        longer = top((1, -0.5), (2, -1.0), (3, -3.0), (4, -4.0), (5, -4.5), (6, -9.0))
        found = difference(longer, top((1, -0.5), (2, -1.0), (3, -3.0), (5, -4.1)))
        # Token 5: 0.4 apart, known. Token 4: at most -4.1 when served, 0.1 apart at least. Token 6 is not asked for.
        assert found.squared == pytest.approx((0.4**2 + 0.1**2) / 5)
        assert (found.spread, found.reference_spread) == (pytest.approx(3.6), pytest.approx(3.5))


class TestSummary:
    """Many positions."""

    def test_it_is_a_mean_over_positions(self) -> None:
        """However they are divided among cases."""
        one = difference(REFERENCE, REFERENCE)
        other = difference(REFERENCE, top((2, -0.5), (1, -1.0), (3, -3.0), (4, -4.0)))
        summary = summarise((one, one, one, other))
        assert summary.tokens == 4
        assert summary.variance == pytest.approx(other.variance / 4)
        assert (summary.decided, summary.mismatches, summary.spread) == (4, 1, 1.0)
        assert summarise(()).tokens == 0

    def test_an_even_answer_is_seen(self) -> None:
        """A corrupted server answers 200 with finite log-probabilities, all the same."""
        flat = replace(REFERENCE, logprobs=(-6.0,) * 4)
        assert uniform(summarise([difference(REFERENCE, flat)]))
        assert not uniform(summarise([difference(REFERENCE, REFERENCE)]))
        assert not uniform(summarise(()))

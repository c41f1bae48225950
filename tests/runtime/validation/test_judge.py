"""Evidence in, verdict out: what passes, what fails and is named, and what cannot be told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from runtime.validation.evidence import Evidence, Forced, Sampled, draw
from runtime.validation.generation import agreement, greedy_chance
from runtime.validation.judge import judge
from schemas.digests import digest_text
from schemas.probe import Distribution
from tests.runtime.validation.probes import (
    GOOD,
    IDS,
    PLATFORM,
    TOKENS,
    calibration,
    distributions,
    evidence,
    forced,
    forced_case,
    look,
    probe,
    top,
)

if TYPE_CHECKING:
    from schemas.probe import ProbeDocument


def outcome(given: Evidence, document: ProbeDocument | None = None, **platform: str) -> tuple[str, str]:
    """Outcome and message."""
    verdict = judge(document or probe(), given, replace(PLATFORM, **platform))
    return verdict.outcome, verdict.message


class TestWhole:
    """The verdict."""

    def test_what_was_recorded_passes(self) -> None:
        """Every test passes, tokens are counted, and it is said how strong it was."""
        verdict = judge(probe(), GOOD, PLATFORM)
        assert (verdict.outcome, verdict.strength) == ("pass", "calibrated")
        assert [(item.test, item.outcome) for item in verdict.findings] == [
            (name, "pass") for name in ("tokenizer", "texts", "weights", "continuation", "cache", "sampler")
        ]
        assert verdict.tokens == 8 + 4 + 2 + 12
        assert verdict.message == "5 cases, 26 tokens as recorded (calibrated)"

    def test_the_digest_is_of_everything_that_was_answered(self) -> None:
        """Whoever has the evidence can compute it; any other answer is another digest."""
        assert judge(probe(), GOOD, PLATFORM).evidence == digest_text(GOOD.to_json())
        others = [
            evidence(rendered=((1, 2, 3), (4, 6))),
            evidence(encoded=((1, 8),)),
            evidence(forced=forced(1)),
            evidence(forced=forced(0, off=1e-9)),
            evidence(continued=((5, 6, 7, 9),)),
            evidence(cached=(7,)),
            evidence(sampled=()),
            evidence(tasks=(("json", "{}"),)),
        ]
        digests = {judge(probe(), item, PLATFORM).evidence for item in (GOOD, *others)}
        assert len(digests) == len(others) + 1

    def test_no_answer_is_no_pass(self) -> None:
        """Evidence of nothing fails, whatever the probe asks (I2)."""
        for document in (
            probe(),
            probe(tokenizer=()),
            probe(tokenizer=(), texts=()),
            probe(forced=(), calibrations=()),
        ):
            assert outcome(Evidence(), document)[0] != "pass"
        bare = probe(tokenizer=(), texts=(), greedy=())
        assert outcome(Evidence(), bare) == ("inconclusive", "0 tokens are too few to tell: 8 are needed")


class TestIds:
    """Tokenizer and template: exact."""

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"rendered": ((1, 2, 3), (4, 6))}, "tokenizer case 2 of 2: token 2 is 6, the probe expects 5"),
            ({"rendered": ((1, 2), (4, 5))}, "tokenizer case 1 of 2: 2 tokens, the probe expects 3"),
            ({"rendered": ((1, 2, 3, 4), (4, 5))}, "tokenizer case 1 of 2: 4 tokens, the probe expects 3"),
            ({"rendered": ((1, 2, 3),)}, "1 of 2 cases were answered (tokenizer cases)"),
            ({"encoded": ((9,),)}, "text 1 of 1: token 1 is 9, the probe expects 1"),
            ({"encoded": ()}, "0 of 1 cases were answered (texts)"),
        ],
    )
    def test_a_single_different_id_fails_and_is_named(self, fields: dict[str, Any], words: str) -> None:
        """One id too many, too few or other is a failure that says where (I2)."""
        assert outcome(evidence(**fields)) == ("fail", words)

    def test_the_tokenizer_is_named_before_the_weights(self) -> None:
        """A wrong tokenizer makes everything differ: the cause is named, not the consequence."""
        given = evidence(rendered=((9,), (4, 5)), forced=forced(0, off=2.0), continued=((9,) * 4,))
        assert outcome(given)[1].startswith("tokenizer case 1")


class TestWeights:
    """Distributions against thresholds."""

    def test_between_the_thresholds_it_is_not_told(self) -> None:
        """0.1 off in one of four: a variance of 0.001875, above what passes and below what fails."""
        verdict = judge(probe(), evidence(forced=forced(0, off=0.1)), PLATFORM)
        assert verdict.outcome == "inconclusive"
        weights = verdict.findings[2]
        assert weights.statistic == pytest.approx(0.001875)
        assert (weights.threshold, weights.tokens) == (0.01, 8)

    def test_above_the_threshold_it_fails(self) -> None:
        """0.5 off: 0.047."""
        told, words = outcome(evidence(forced=forced(0, off=0.5)))
        assert told == "fail"
        assert words == "log-probabilities vary by 0.0469 over 8 tokens (calibrated), at most 0.01 is honest"

    def test_the_largest_look_that_was_reached_decides(self) -> None:
        """Thresholds grow tighter with tokens."""
        looks = (look(8, 0.01, 0.02), look(16, 0.001, 0.001))
        document = probe(calibrations=(calibration(looks=looks),))
        assert outcome(evidence(forced=forced(0, off=0.1)), document)[0] == "pass"
        assert outcome(evidence(forced=forced(0, 1, off=0.1)), document)[0] == "fail"
        assert outcome(evidence(forced=forced(0, length=4)), probe(forced=(forced_case(0, 4),)))[0] == "inconclusive"

    def test_another_preference_fails(self) -> None:
        """Every decided position prefers another token, although the variance would be allowed."""
        document = probe(calibrations=(calibration(looks=(look(8, 1.0, 1.0),)),))
        told, words = outcome(evidence(forced=forced(0, off=1.1)), document)
        assert told == "fail"
        assert words == "8 of 8 sure tokens are others over 8 tokens (calibrated), 0 may be"

    def test_what_moves_everything_fails(self) -> None:
        """The normaliser alone is off: no variance, but a squared difference."""
        document = probe(calibrations=(calibration(looks=(look(8, 1.0, 1.0, squared=0.1),)),))
        moved = tuple(
            Forced(
                item.case, tuple(replace(one, logprobs=tuple(v - 0.5 for v in one.logprobs)) for one in item.positions)
            )
            for item in forced(0)
        )
        told, words = outcome(evidence(forced=moved), document)
        assert (told, words) == ("fail", "log-probabilities are off by 0.25 over 8 tokens (calibrated): 0.1 may be")

    def test_even_answers_fail_whatever_the_thresholds(self) -> None:
        """A corrupted server answers 200 with finite log-probabilities that prefer nothing."""
        document = probe(calibrations=(calibration(looks=(look(8, 1e6, 1e6, squared=1e6, mismatches=99),)),))
        flat = forced(0, spread=0.001)
        assert outcome(evidence(forced=flat), document) == (
            "fail",
            "the engine prefers no token over another (8 tokens)",
        )

    def test_an_engine_that_writes_something_else_fails(self) -> None:
        """Canned answers do not take the tokens that they are given."""
        other = (Forced(1, tuple(top(token) for token in reversed(TOKENS * 2))),)
        told, words = outcome(evidence(forced=other))
        assert told == "fail"
        assert words.startswith("the engine did not take the tokens that it was given: forced case 2: token 1 is 8")
        assert outcome(evidence(forced=(Forced(0, ()),)))[0] == "fail"

    @pytest.mark.parametrize("other", [{"engine": "vllm"}, {"architecture": "amd64/avx512f"}, {"dtype": "bfloat16"}])
    def test_thresholds_are_never_another_platforms(self, other: dict[str, str]) -> None:
        """Without thresholds of its own a platform gets coarse ones, and the verdict says so."""
        verdict = judge(probe(), evidence(forced=forced(0, 1, 2, 3)), replace(PLATFORM, **other))
        assert (verdict.outcome, verdict.strength) == ("pass", "uncalibrated")
        coarse = judge(probe(), evidence(forced=forced(0, 1, 2, 3, off=0.9)), replace(PLATFORM, **other))
        assert coarse.outcome == "fail"

    def test_a_golden_is_for_its_build_alone(self) -> None:
        """Its answers and its thresholds win on exactly that build; on another the reference is what counts."""
        skewed = ({"ids": IDS, "logprobs": (-0.5, -1.0, -3.0, -4.0)},) * 8
        document = probe(goldens=({"calibration": calibration(), "forced": (skewed,) * 4},))
        mine = evidence(forced=forced(0, off=0.5))
        assert judge(document, mine, PLATFORM).strength == "golden"
        assert judge(document, mine, PLATFORM).outcome == "pass"
        assert judge(document, mine, replace(PLATFORM, version="2")).outcome == "fail"
        assert judge(document, GOOD, replace(PLATFORM, version="2")).strength == "calibrated"

    def test_an_engine_without_distributions_is_told_by_its_words(self) -> None:
        """The strongest that its API allows, and the verdict says which that is."""
        verdict = judge(probe(), evidence(forced=()), PLATFORM)
        assert (verdict.outcome, verdict.strength) == ("pass", "token-ids")


class TestGeneration:
    """What the model writes by itself."""

    def test_old_probes_are_exact(self) -> None:
        """Without distributions nothing is forgiven, as before they existed."""
        document = probe(forced=(), calibrations=(), texts=(), greedy=({"prompt": (1, 2), "tokens": TOKENS},))
        given = Evidence(rendered=GOOD.rendered, continued=(TOKENS,))
        assert outcome(given, document) == ("pass", "3 cases, 4 tokens as recorded")
        told = outcome(replace(given, continued=((5, 6, 7, 9),)), document)
        assert told == ("fail", "greedy case 1 of 1: token 4 is 9, the probe expects 8")
        assert outcome(replace(given, continued=()), document) == ("fail", "0 of 1 continuations were answered")

    def test_rounding_may_choose_where_the_reference_hesitates(self) -> None:
        """Between two tokens that are as likely, and what follows is another text; nowhere else."""
        sure = Distribution(ids=IDS, logprobs=(-0.1, -3.0, -4.0, -5.0))
        torn = Distribution(ids=IDS, logprobs=(-0.7, -0.75, -4.0, -5.0))
        assert agreement((5, 5, 5), (sure, torn, sure), (5, 6, 8)) == (1, "")
        assert agreement((5, 5, 5), (sure, torn, sure), (5, 7, 8))[1] == "token 2 is 7, the probe expects 5"
        assert agreement((5, 5, 5), (sure, torn, sure), (5, 99, 8))[1] == "token 2 is 99, the probe expects 5"
        assert agreement((5, 5, 5), (sure, sure, sure), (5, 6, 8))[1] == "token 2 is 6, the probe expects 5"
        # A recorded token that the reference never preferred: the probe was changed after it was recorded.
        assert agreement((6, 5, 5), (sure, sure, sure), (5, 5, 5))[1] == "token 1 is 5, the probe expects 6"

    def test_an_end_is_an_end(self) -> None:
        """A stop token that is not obeyed, or obeyed too early."""
        document = probe(greedy=({"prompt": (1, 2), "tokens": TOKENS, "top": distributions(4), "ends": True},))
        assert outcome(GOOD, document)[0] == "pass"
        told, words = outcome(evidence(continued=((*TOKENS, 5, 5),)), document)
        assert (told, words) == ("fail", "greedy case 1 of 1: it goes on after token 4, where the model ends")
        assert outcome(evidence(continued=(TOKENS[:3],)), document)[0] == "fail"

    def test_a_cache_that_answers_for_another_prompt_is_seen(self) -> None:
        """The second half must be what the first half leads to."""
        told, words = outcome(evidence(cached=(6, 8)))
        assert (told, words) == ("fail", "with caches, after 2 tokens: token 1 is 6, the probe expects 7")

    def test_a_seed_that_does_not_repeat_is_seen_the_second_time(self) -> None:
        """Rounding may part one pair of draws, not every one of them."""
        parted, agreed = Sampled(0, (5, 6), (5, 7), (8, 8)), Sampled(0, (5, 6), (5, 6), (8, 8))
        assert outcome(evidence(sampled=(parted, agreed)))[0] == "pass"
        told, words = outcome(evidence(sampled=(parted, parted)))
        assert (told, words) == ("fail", "the same seed drew other tokens, 2 times: 5 6 and 5 7")

    def test_a_sampler_that_always_takes_the_likeliest_is_seen(self) -> None:
        """Sixteen times in a row is no chance; where the model is sure of itself, it is no fault either."""
        greedy = {"prompt": (1, 2), "tokens": (5,) * 16, "top": distributions(16)}
        wrote = (5,) * 16
        given = evidence(continued=(wrote,), cached=None, sampled=(Sampled(0, wrote, wrote, wrote),))
        assert outcome(given, probe(greedy=(greedy,))) == (
            "fail",
            "it drew the likeliest token 16 times of 16 at temperature 2",
        )
        same = (6, 5) * 8
        other = evidence(continued=(wrote,), cached=None, sampled=(Sampled(0, same, same, same),))
        assert outcome(other, probe(greedy=(greedy,))) == ("fail", "two seeds drew the same 16 tokens")
        sure = ({"ids": IDS, "logprobs": (-0.0001, -60.0, -60.0, -60.0)},) * 16
        assert outcome(given, probe(greedy=({**greedy, "top": sure},)))[0] == "pass"

    def test_the_chance_of_the_likeliest_is_an_upper_bound(self) -> None:
        """By hand: two tokens as likely, four positions."""
        even = Distribution(ids=(1, 2), logprobs=(-0.7, -0.7))
        assert greedy_chance((even,) * 4) == pytest.approx(1 / 16)
        assert greedy_chance(()) == 1

    def test_limits_are_limits(self) -> None:
        """Too late, too slow; without limits nothing is measured."""
        document = probe(limits={"firstToken": 0.5, "tokensPerSecond": 10.0})
        assert outcome(evidence(first_token=0.4, tokens_per_second=11.0), document)[0] == "pass"
        assert "first token took 0.6 s" in outcome(evidence(first_token=0.6, tokens_per_second=11.0), document)[1]
        assert "9 tokens per second" in outcome(evidence(first_token=0.1, tokens_per_second=9.0), document)[1]

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ('{"city": "Lima", "capital": true}', "pass"),
            ('{"city": "Lima", "capital": true', "fail"),
            ('{"city": "Lima"}', "fail"),
            ('{"city": "Rome", "capital": true}', "fail"),
            ('{"city": "Lima", "capital": 1}', "fail"),
            ('{"city": ["Lima"], "capital": true}', "fail"),
            ('{"city": "Lima", "capital": true, "more": 1}', "fail"),
            ('["Lima", true]', "fail"),
            ("[" * 5000, "fail"),
            ("Lima is a capital.", "fail"),
            ("", "fail"),
        ],
    )
    def test_a_task_that_is_claimed_must_work(self, text: str, told: str) -> None:
        """An answer of the form that was asked for, nothing less."""
        assert outcome(evidence(tasks=(("json", text),)))[0] == told


class TestDocument:
    """What a probe may be."""

    def test_a_draw_is_a_permutation_that_its_seed_decides(self) -> None:
        """Every case once; another seed, another order."""
        assert sorted(draw("a", 50)) == list(range(50))
        assert draw("a", 50) == draw("a", 50) != draw("b", 50)

    @pytest.mark.parametrize(
        "fields",
        [
            {"greedy": (), "forced": (), "calibrations": ()},
            {"forced": ()},
            {"calibrations": (calibration(), calibration())},
            {"calibrations": (calibration(margin=1.2),)},
            {"calibrations": (calibration(looks=(look(16), look(8))),)},
            {"calibrations": (calibration(looks=(look(8, 0.2, 0.1),)),)},
            {"calibrations": (calibration(looks=(look(8, 0.1, float("inf")),)),)},
            {"goldens": ({"calibration": calibration(), "forced": (distributions(8),)},)},
            {"forced": ({**forced_case(0), "top": distributions(7)},)},
            {"forced": ({**forced_case(0), "top": ({"ids": (1, 1), "logprobs": (-1.0, -2.0)},) * 8},)},
            {"forced": ({**forced_case(0), "top": ({"ids": (1, 2), "logprobs": (-2.0, -1.0)},) * 8},)},
            {"forced": ({**forced_case(0), "top": ({"ids": (1, 2), "logprobs": (0.1, -1.0)},) * 8},)},
            {"greedy": ({"prompt": (1,), "tokens": TOKENS, "top": distributions(3)},)},
        ],
    )
    def test_what_could_not_be_judged_by_is_refused(self, fields: dict[str, Any]) -> None:
        """Thresholds and distributions that contradict themselves or each other."""
        with pytest.raises(ValidationError):
            probe(**fields)

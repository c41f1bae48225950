"""The asking: how much is asked, in which order, and what ends it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from runtime.engines.simulated import SimulatedEngine
from runtime.host import StopEvent
from runtime.validation.evidence import Platform, TopTokens, draw
from runtime.validation.run import validate
from schemas.errors import EngineUnreachable
from tests.runtime.validation.probes import GOOD, PLATFORM, TOKENS, calibration, look, probe, top
from tests.support.scripted import Scripted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from pydantic import JsonValue

    from runtime.interfaces import Answers, EngineConnection
    from runtime.validation.evidence import Evidence
    from runtime.validation.judge import Verdict
    from schemas.probe import ChatMessage, ProbeDocument

SEED = "00112233445566778899aabbccddeeff"
NOWHERE = Scripted(None)


@dataclass
class Ticking:
    """A clock that goes on by as much as the engine says it took."""

    seconds: float = 0.0

    def now(self) -> datetime:
        """Never asked for."""
        raise AssertionError("not expected")

    def monotonic(self) -> float:
        """Where it stands."""
        return self.seconds


@dataclass
class Honest(SimulatedEngine):
    """An engine that writes down what it is asked, and answers as the probe expects, or as its fields say."""

    off: float = 0.0
    rendered: tuple[tuple[int, ...], ...] = GOOD.rendered
    asked: list[str] = field(default_factory=list)
    clock: Ticking = field(default_factory=Ticking)
    seeds: list[int] = field(default_factory=list)
    answers: frozenset[Answers] = frozenset({"render", "tokenize", "force", "sample", "chat"})

    def render(
        self, connection: EngineConnection, messages: Sequence[ChatMessage], *, tools: Sequence[JsonValue] = ()
    ) -> tuple[int, ...]:
        """The next one."""
        self.asked.append("render")
        return self.rendered[len(self.asked) - 1]

    def tokenize(self, connection: EngineConnection, text: str, *, special: bool) -> tuple[int, ...]:
        """The one."""
        self.asked.append("tokenize")
        return GOOD.encoded[0]

    def force(
        self, connection: EngineConnection, prompt: Sequence[int], forced: Sequence[int]
    ) -> tuple[TopTokens, ...]:
        """The one distribution, off by as much as it is."""
        self.asked.append(f"force {prompt[1] - 100}")
        return tuple(top(token, off=self.off) for token in forced)

    def greedy(self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int) -> tuple[int, ...]:
        """As recorded, at one second a token."""
        self.asked.append(f"greedy {tokens}")
        self.clock.seconds += tokens
        return TOKENS[:tokens]

    def sample(
        self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int, seed: int, temperature: float
    ) -> tuple[int, ...]:
        """The rest of the continuation where it is cold, and what follows from the seed where it is not."""
        self.asked.append(f"sample {tokens} at {temperature:g}")
        if temperature == 0:
            return TOKENS[len(prompt) - 2 :][:tokens]
        self.seeds.append(seed)
        return tuple(seed % 7 + place for place in range(tokens))

    def chat(
        self,
        connection: EngineConnection,
        messages: Sequence[ChatMessage],
        *,
        schema: Mapping[str, JsonValue],
        call: bool,
    ) -> str:
        """In form."""
        self.asked.append("call" if call else "json")
        return '{"city": "Oslo", "capital": true}'


def run(engine: Honest, document: ProbeDocument | None = None, **given: Any) -> tuple[Verdict, Evidence]:
    """A validation."""
    asked: dict[str, Any] = {"platform": PLATFORM, "seed": SEED, "clock": engine.clock, "stop": StopEvent(), **given}
    return validate(engine, NOWHERE, document or probe(), **asked)


def test_an_honest_engine_is_asked_once_in_the_order_of_causes() -> None:
    """Ids, then one draw of distributions, then what it writes: the short way, which most validations take."""
    engine = Honest()
    verdict, evidence = run(engine)
    first = draw(SEED, 4)[0]
    assert engine.asked == [
        *("render", "render", "tokenize", f"force {first}", "greedy 4"),
        *("sample 2 at 0", "sample 2 at 0", "sample 4 at 2", "sample 4 at 2", "sample 4 at 2"),
    ]
    assert verdict.outcome == "pass"
    assert evidence.cached == TOKENS[2:]
    assert [item.case for item in evidence.forced] == [first]
    assert engine.seeds[0] == engine.seeds[1] != engine.seeds[2]


def test_what_cannot_be_told_is_asked_on_up_to_the_last_look() -> None:
    """A little off: the second look is reached, and nothing beyond it is asked."""
    engine = Honest(off=0.1)
    verdict, evidence = run(engine)
    assert len(evidence.forced) == 2
    assert verdict.outcome == "inconclusive"
    assert verdict.findings[-1].test == "sampler"
    strict = probe(calibrations=(calibration(looks=(look(8), look(24, 0.001, 0.0015))),))
    verdict, evidence = run(Honest(off=0.1), strict)
    assert (len(evidence.forced), verdict.outcome) == (3, "fail")


def test_a_stage_that_fails_is_the_last() -> None:
    """Nothing is asked of weights that a wrong tokenizer feeds, and nothing written by wrong weights."""
    engine = Honest(rendered=((9,), (9,)))
    assert run(engine)[0].outcome == "fail"
    assert engine.asked == ["render", "render", "tokenize"]
    engine = Honest(off=0.9)
    assert run(engine)[0].outcome == "fail"
    assert engine.asked[-1].startswith("force")


def test_another_seed_asks_other_cases() -> None:
    """Over a few validations the whole pool is asked: no list of answers covers it."""
    asked = {run(Honest(), seed=f"{number:032x}")[1].forced[0].case for number in range(40)}
    assert asked == {0, 1, 2, 3}


def test_what_an_engine_cannot_answer_is_not_asked() -> None:
    """A short API gets the strongest test that it allows."""
    engine = Honest(answers=frozenset())
    verdict, _ = run(engine, probe(tokenizer=(), texts=()))
    assert engine.asked == ["greedy 4"]
    assert (verdict.outcome, verdict.strength) == ("pass", "token-ids")


def test_tasks_are_tried_where_the_model_is_for_them() -> None:
    """What the snapshot claims, and nothing else."""
    engine = Honest()
    verdict, evidence = run(engine, tasks=("chat", "tools", "json"))
    assert engine.asked[-2:] == ["json", "call"]
    assert [name for name, _ in evidence.tasks] == ["json", "tools"]
    assert verdict.outcome == "pass"


def test_limits_are_measured_only_where_there_are_any() -> None:
    """One second a token: the clock of the node, not of the engine."""
    _, evidence = run(Honest())
    assert (evidence.first_token, evidence.tokens_per_second) == (None, None)
    _, evidence = run(Honest(), probe(limits={"firstToken": 2.0, "tokensPerSecond": 0.5}))
    assert (evidence.first_token, evidence.tokens_per_second) == (1.0, 1.0)


def test_a_stop_ends_it_without_a_verdict() -> None:
    """Stopping is not failing: an agent that is told to stop leaves no rejection behind."""
    stop = StopEvent()
    stop.set()
    engine = Honest()
    with pytest.raises(EngineUnreachable, match="stopped"):
        run(engine, stop=stop)
    assert engine.asked == []


def test_without_thresholds_of_its_own_more_is_asked_but_not_without_end() -> None:
    """An uncalibrated platform: up to the pool, and the verdict says what it is worth."""
    verdict, evidence = run(Honest(), platform=Platform("llamacpp", "1", "other", "stored"))
    assert len(evidence.forced) == 4
    assert verdict.strength == "uncalibrated"

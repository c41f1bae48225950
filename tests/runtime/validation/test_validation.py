"""Validation inference: what is asked, how it is judged, and that it tells real models apart."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from runtime.engines.llamacpp import LlamaCppEngine
from runtime.engines.simulated import SimulatedEngine
from runtime.host import StopEvent
from runtime.validation.judge import judge
from runtime.validation.record import record
from runtime.validation.run import Evidence, run_probe
from schemas.errors import EngineUnreachable
from schemas.probe import ProbeDocument, ProbeSpec, Provenance
from tests.contracts.backend_contract import eventually
from tests.support.builders import manifest_digest
from tests.support.engines import NativeNode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from runtime.interfaces import EngineConnection
    from schemas.probe import ChatMessage

GOOD = Evidence(((1, 2, 3), (4, 5)), ((6, 7), (8, 9, 10)))


def probe(spec: ProbeSpec | None = None) -> ProbeDocument:
    """A probe that expects exactly the good evidence, or another's."""
    turn = {"role": "user", "content": "hello"}
    provenance = {"engine": "llamacpp", "version": "1", "manifest": manifest_digest("m:v1"), "machine": "test"}
    cases: dict[str, Any] = {
        "recorded": provenance,
        "tokenizer": tuple({"messages": (turn,), "tokens": tokens} for tokens in GOOD.rendered),
        "greedy": tuple({"prompt": (1, 2), "tokens": tokens} for tokens in GOOD.continued),
    }
    return ProbeDocument.model_validate(
        {
            "apiVersion": "reconcile/v1alpha1",
            "kind": "Probe",
            "metadata": {"name": "p", "model": "m:v1"},
            "spec": cases if spec is None else spec,
        }
    )


class TestJudge:
    """Pure: evidence in, verdict out."""

    def test_what_was_recorded_passes(self) -> None:
        """Exact ids, counted."""
        verdict = judge(probe(), GOOD)
        assert (verdict.outcome, verdict.tokens) == ("pass", 5)
        assert verdict.message == "4 cases, 5 tokens as recorded"

    @pytest.mark.parametrize(
        ("evidence", "words"),
        [
            (replace(GOOD, rendered=((1, 2, 3), (4, 6))), "tokenizer case 2 of 4: token 2 is 6, the probe expects 5"),
            (replace(GOOD, rendered=((1, 2), (4, 5))), "tokenizer case 1 of 4: 2 tokens, the probe expects 3"),
            (replace(GOOD, rendered=((1, 2, 3, 4), (4, 5))), "tokenizer case 1 of 4: 4 tokens, the probe expects 3"),
            (replace(GOOD, continued=((6, 7), (8, 9, 11))), "greedy case 4 of 4: token 3 is 11, the probe expects 10"),
            (replace(GOOD, continued=((6, 7), ())), "greedy case 4 of 4: 0 tokens, the probe expects 3"),
            (replace(GOOD, continued=((6, 7),)), "3 of 4 cases were answered"),
            (Evidence((), ()), "0 of 4 cases were answered"),
        ],
    )
    def test_a_single_different_token_fails_and_is_named(self, evidence: Evidence, words: str) -> None:
        """One id too many, too few or other is a failure that says where (I2)."""
        verdict = judge(probe(), evidence)
        assert (verdict.outcome, verdict.message) == ("fail", words)

    def test_the_tokenizer_is_named_before_the_weights(self) -> None:
        """A wrong tokenizer makes everything differ: the cause is named, not the consequence."""
        verdict = judge(probe(), Evidence(((1, 2, 3), (9, 9)), ((0, 0), (0, 0, 0))))
        assert verdict.message.startswith("tokenizer case 2")

    def test_answers_cannot_change_places(self) -> None:
        """Evidence of one kind does not stand in for the other, and its digest tells all of it."""
        swapped = Evidence(GOOD.continued, GOOD.rendered)
        verdict = judge(probe(), swapped)
        assert verdict.outcome == "fail"
        assert verdict.evidence != judge(probe(), GOOD).evidence
        assert judge(probe(), GOOD).evidence == judge(probe(), GOOD).evidence


class Scripted(SimulatedEngine):
    """An engine that writes down what it is asked and answers from a list."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def render(self, connection: EngineConnection, messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        """The next answer."""
        self.asked.append(f"render {messages[0].content}")
        return GOOD.rendered[len(self.asked) - 1]

    def greedy(self, connection: EngineConnection, prompt: Sequence[int], *, tokens: int) -> tuple[int, ...]:
        """The next answer."""
        self.asked.append(f"greedy {list(prompt)} {tokens}")
        return GOOD.continued[len(self.asked) - 3]


class Nowhere:
    """A connection that is never used."""

    def request(
        self, method: str, path: str, body: JsonValue = None, *, timeout: float, limit: int = 2**22
    ) -> JsonValue:
        """Refuse."""
        raise AssertionError("not expected")


class TestRun:
    """The asking."""

    def test_every_case_is_asked_with_its_own_length(self) -> None:
        """In the probe's order; as many tokens as the probe expects."""
        engine = Scripted()
        assert run_probe(engine, Nowhere(), probe(), stop=StopEvent()) == GOOD
        assert engine.asked == ["render hello", "render hello", "greedy [1, 2] 2", "greedy [1, 2] 3"]

    def test_a_stop_ends_it_without_a_verdict(self) -> None:
        """Stopping is not failing: an agent that is told to stop leaves no rejection behind."""
        stop = StopEvent()
        stop.set()
        engine = Scripted()
        with pytest.raises(EngineUnreachable, match="stopped"):
            run_probe(engine, Nowhere(), probe(), stop=stop)
        assert engine.asked == []


def test_real_models_are_told_apart(tmp_path: Path, tiny_model: Callable[[int], Path]) -> None:
    """A probe recorded from a model passes on a new instance of it, and fails on a model with other weights (I2)."""
    pytest.importorskip("xllamacpp", reason="xllamacpp not present")
    engine = LlamaCppEngine()
    verdicts: list[str] = []
    document: ProbeDocument | None = None

    def ready(connection: EngineConnection) -> bool:
        try:
            return engine.ready(connection)
        except EngineUnreachable:
            return False

    for number, seed in enumerate((1, 1, 2)):
        with NativeNode(tmp_path / str(number)).running(tiny_model(seed)) as connection:
            eventually(lambda here=connection: ready(here), "llama.cpp is ready")
            if document is None:
                provenance = Provenance(
                    engine="llamacpp", version="1", manifest=manifest_digest("m:v1"), machine="test"
                )
                document = probe(record(engine, connection, provenance, tokens=8))
            verdicts.append(judge(document, run_probe(engine, connection, document, stop=StopEvent())).message)
    assert verdicts[0] == verdicts[1]
    assert verdicts[1].endswith("tokens as recorded")
    assert verdicts[2].startswith("greedy case")

"""What every engine must do: one suite, asked of each (`test_engines.py` says of which).

A bench stands for one engine with one model: it describes targets and manifests that the engine is launched with, and
connects to an instance that is ready. A new engine is a new bench.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import pytest

from runtime.interfaces import Answers, EngineView
from runtime.validation.evidence import TOP, Evidence
from runtime.validation.generation import SCHEMA, generation_findings
from runtime.validation.run import QUESTION
from schemas.errors import EngineUnreachable, Incompatible
from schemas.probe import ChatMessage, GreedyCase, ProbeSpec, Provenance
from schemas.runtimes import LlamaCppArgs, VllmArgs
from tests.support.builders import manifest_digest
from tests.support.front import eventually
from tests.support.models import make_model

if TYPE_CHECKING:
    from runtime.interfaces import Engine, EngineConnection
    from schemas.target import ServingTarget

HELLO = (ChatMessage(role="user", content="Hello."),)
OTHER = (ChatMessage(role="system", content="Be short."), ChatMessage(role="user", content="Count: 1, 2, 3"))
TEXT = "The museum opens at nine in the morning and closes at six in the evening."
FORMATS: dict[Literal["gguf", "safetensors"], str] = {"gguf": "model.gguf", "safetensors": "model.safetensors"}
VIEW = EngineView("/srv/models/m", "engine.sock")
GRACE = 60.0
"""Seconds within which an engine that was told to end has ended, however busy the machine."""


class Bench(Protocol):
    """One engine with one model, for all tests of a class."""

    engine: Engine
    target: ServingTarget
    """One that the engine runs."""
    calls: bool
    """Whether its model's template lets functions be called."""

    def connect(self) -> EngineConnection:
        """To an instance that is ready; starts one if there is none."""
        ...

    def nobody(self) -> EngineConnection:
        """To a socket at which nobody listens."""
        ...


class Process(Bench, Protocol):
    """One whose engine is a process of this machine."""

    cuts: bool
    """Whether it cuts what it is answering when it is told to end. vLLM 0.32 stops its engine and then waits for the
    connection that nothing comes on any more: it is killed when its grace is over."""

    def end(self, seconds: float) -> bool:
        """Ask the instance to end as every backend does; whether it did within some seconds."""
        ...


def questions(engine: Engine, connection: EngineConnection) -> dict[str, Any]:
    """Every question of the protocol, by name, not yet asked."""
    return {
        "ready": lambda: engine.ready(connection),
        "render": lambda: engine.render(connection, HELLO),
        "greedy": lambda: engine.greedy(connection, (1, 2), tokens=2),
        "tokenize": lambda: engine.tokenize(connection, TEXT, special=False),
        "force": lambda: engine.force(connection, (1, 2), (3,)),
        "sample": lambda: engine.sample(connection, (1, 2), tokens=2, seed=0, temperature=0.0),
        "chat": lambda: engine.chat(connection, HELLO, schema=SCHEMA, call=False),
    }


def form_of(text: str, task: str) -> str:
    """What the judge of validations says of an answer's form: `pass` or `fail`."""
    origin = Provenance(engine="test", version="1", manifest=manifest_digest("m:v1"), machine="test")
    probe = ProbeSpec(recorded=origin, greedy=(GreedyCase(prompt=(1,), tokens=(2,)),))
    return generation_findings(probe, Evidence(continued=((2,),), tasks=((task, text),)))[-1].outcome


class EngineContract:
    """The suite. A subclass provides the fixture `bench`."""

    def test_it_says_what_it_is(self, bench: Bench) -> None:
        """A name that snapshots use, formats that manifests use, and answers that validation knows."""
        engine = bench.engine
        assert engine.name == bench.target.engine
        assert engine.formats
        assert engine.formats <= FORMATS.keys()
        assert engine.answers <= set(get_args(Answers))
        native = engine.native()
        assert native is None or (native.engine, bool(native.version)) == (engine.name, True)

    def test_it_is_launched_with_what_it_loads_and_listens_where_it_is_told(self, bench: Bench) -> None:
        """The words of the command say where the model is and where the socket; what it cannot load is refused."""
        for form, file in FORMATS.items():
            manifest = make_model({file: b"GGUF"}, form=form).manifest
            if form not in bench.engine.formats:
                with pytest.raises(Incompatible, match=bench.target.model):
                    bench.engine.launch(bench.target, manifest, VIEW)
                continue
            words = " ".join(bench.engine.launch(bench.target, manifest, VIEW).argv)
            assert VIEW.model in words
            assert VIEW.socket in words

    def test_another_engine_s_arguments_are_refused(self, bench: Bench) -> None:
        """A snapshot that was changed by hand in the journal starts nothing."""
        if bench.engine.name == "simulated":
            return
        other = VllmArgs() if isinstance(bench.target.engine_args, LlamaCppArgs) else LlamaCppArgs()
        form, file = next((form, file) for form, file in FORMATS.items() if form in bench.engine.formats)
        manifest = make_model({file: b"GGUF"}, form=form).manifest
        with pytest.raises(Incompatible, match="arguments"):
            bench.engine.launch(bench.target.model_copy(update={"engine_args": other}), manifest, VIEW)

    def test_where_nobody_listens_every_question_says_so(self, bench: Bench) -> None:
        """One error, whatever was asked: nothing is taken for an answer that is none."""
        for name, ask in questions(bench.engine, bench.nobody()).items():
            with pytest.raises(EngineUnreachable):
                ask()
            assert name

    def test_what_it_has_no_answer_to_is_refused(self, bench: Bench) -> None:
        """Although it is there: what it does not list would be made up."""
        asked = questions(bench.engine, bench.connect())
        for name in sorted(set(get_args(Answers)) - bench.engine.answers):
            with pytest.raises(EngineUnreachable):
                asked[name]()

    def test_ready_is_ready(self, bench: Bench) -> None:
        """And stays so while it is asked."""
        connection = bench.connect()
        assert bench.engine.ready(connection)
        bench.engine.greedy(connection, self.prompt(bench), tokens=2)
        assert bench.engine.ready(connection)

    def test_a_conversation_is_rendered_the_same_each_time(self, bench: Bench) -> None:
        """And another one otherwise."""
        engine, connection = bench.engine, bench.connect()
        assert engine.render(connection, HELLO) == engine.render(connection, HELLO)
        assert engine.render(connection, HELLO) != engine.render(connection, OTHER)

    def test_a_continuation_is_the_same_each_time_and_no_longer_than_asked_for(self, bench: Bench) -> None:
        """What fewer tokens say is how more of them begin."""
        engine, connection, prompt = bench.engine, bench.connect(), self.prompt(bench)
        long = engine.greedy(connection, prompt, tokens=8)
        assert 0 < len(long) <= 8
        assert engine.greedy(connection, prompt, tokens=8) == long
        assert engine.greedy(connection, prompt, tokens=4) == long[:4]

    def test_what_it_is_doing_is_in_numbers_or_not_known(self, bench: Bench) -> None:
        """Nothing, once it has answered; never a number below zero."""
        engine, connection = bench.engine, bench.connect()
        engine.greedy(connection, self.prompt(bench), tokens=2)
        doing = engine.activity(connection)
        if doing is not None:
            eventually(lambda: replace(engine.activity(connection) or doing, tokens=0) == type(doing)(0, 0, 0), "idle")
            assert doing.tokens >= 0

    def test_text_becomes_tokens_and_comes_back(self, bench: Bench) -> None:
        """The same ids each time; said again they are the text."""
        engine, connection = bench.engine, bench.connect()
        if "tokenize" not in engine.answers:
            return
        tokens = engine.tokenize(connection, TEXT, special=False)
        assert tokens == engine.tokenize(connection, TEXT, special=False)
        assert tokens
        if engine.name != "simulated":
            assert engine.text(connection, tokens).strip() == TEXT

    def test_forced_tokens_stand_where_they_were_put(self, bench: Bench) -> None:
        """What it would have written ranks first at each position; what it would not still stands there."""
        engine, connection, prompt = bench.engine, bench.connect(), self.prompt(bench)
        if "force" not in engine.answers:
            return
        own = engine.greedy(connection, prompt, tokens=6)
        found = engine.force(connection, prompt, own)
        assert tuple(position.forced for position in found) == own
        for position in found:
            assert 2 <= len(position.ids) == len(position.logprobs) <= TOP
            assert list(position.logprobs) == sorted(position.logprobs, reverse=True)
            assert position.logprobs[0] <= 0
        others = tuple(position.ids[-1] for position in found)
        turned = engine.force(connection, prompt, others)
        assert tuple(position.forced for position in turned) == others
        assert turned[0].ids == found[0].ids, "nothing stands before the first"
        if engine.name != "simulated":
            assert tuple(position.ids[0] for position in found) == own
            assert turned[0].logprob == pytest.approx(found[0].logprobs[-1], abs=1e-3)

    def test_a_seed_repeats_and_cold_is_greedy(self, bench: Bench) -> None:
        """Drawn at temperature 0 it is the likeliest; hot, two seeds part."""
        engine, connection, prompt = bench.engine, bench.connect(), self.prompt(bench)
        if "sample" not in engine.answers:
            return

        def drawn(seed: int, temperature: float) -> tuple[int, ...]:
            return engine.sample(connection, prompt, tokens=12, seed=seed, temperature=temperature)

        assert drawn(1, 0.0) == engine.greedy(connection, prompt, tokens=12)
        assert drawn(1, 2.0) == drawn(1, 2.0)
        assert drawn(1, 2.0) != drawn(2, 2.0)

    def test_an_answer_has_the_form_that_was_asked_for(self, bench: Bench) -> None:
        """A JSON Schema's, and a function call's where the template has one; the judge of validations says so."""
        if "chat" not in bench.engine.answers:
            return
        forms = {"json": False, "tools": True} if bench.calls else {"json": False}
        for task, call in forms.items():
            text = bench.engine.chat(bench.connect(), QUESTION, schema=SCHEMA, call=call)
            assert form_of(text, task) == "pass", (task, text)

    def prompt(self, bench: Bench) -> tuple[int, ...]:
        """Something to go on from, in the engine's own words."""
        return bench.engine.render(bench.connect(), OTHER)


class ProcessContract(EngineContract):
    """The same of engines that are processes. A subclass provides a `bench` that is a `Process`."""

    def test_tokens_are_counted_as_they_are_read_and_written(self, bench: Process) -> None:
        """Only that the count moves means anything."""
        engine, connection = bench.engine, bench.connect()
        before = engine.activity(connection)
        prompt = self.prompt(bench)
        engine.greedy(connection, prompt, tokens=8)
        if before is not None:
            eventually(lambda: (engine.activity(connection) or before).tokens > before.tokens, "it counts")

    def test_told_to_end_it_ends_whatever_it_is_answering(self, bench: Process) -> None:
        """What was being answered has an answer, or is seen not to have one: requests are let end before that."""
        engine, connection, prompt = bench.engine, bench.connect(), self.prompt(bench)
        outcome: list[object] = []

        def ask() -> None:
            try:
                outcome.append(engine.greedy(connection, prompt, tokens=400))
            except EngineUnreachable as error:
                outcome.append(error)

        if not bench.cuts:
            assert engine.greedy(connection, prompt, tokens=2)
            assert bench.end(GRACE), "it did not end with nothing to do"
            return
        asking = threading.Thread(target=ask)
        asking.start()
        if engine.activity(connection) is not None:
            eventually(lambda: bool(outcome) or (engine.activity(connection) or never()).running > 0, "it is busy")
        assert bench.end(GRACE), "it did not end"
        asking.join(GRACE)
        assert len(outcome) == 1
        with pytest.raises(EngineUnreachable):
            engine.ready(connection)


def never() -> Any:
    """What was said once is said again."""
    raise AssertionError("it no longer says what it is doing")

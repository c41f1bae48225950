"""Real llama.cpp, honest and not: a probe is recorded, honest instances pass it, siblings with one fault do not.

The models are tiny, and what it takes to tell them apart is in the power table; here the whole way is walked, from
recording to the verdict, with the wire in between.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from runtime.engines.llamacpp import LlamaCppEngine
from runtime.host import StopEvent, host_ports
from runtime.validation.calibrate import calibrate
from runtime.validation.evidence import Platform
from runtime.validation.record import answers, honest_run, record
from runtime.validation.run import validate
from schemas.errors import EngineUnreachable
from schemas.probe import ProbeDocument, ProbeMetadata, ProbeSpec, Provenance
from schemas.runtimes import LlamaCppArgs
from tests.contracts.backend_contract import eventually
from tests.support import builders
from tests.support.engines import NativeNode

pytest.importorskip("xllamacpp", reason="xllamacpp not present")
pytest.importorskip("gguf", reason="gguf not present")

from tests.support.variants import perturbed, rounded, swapped_layers, write_variant

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydantic import JsonValue

    from runtime.interfaces import EngineConnection
    from runtime.validation.evidence import Evidence
    from runtime.validation.judge import Verdict

ENGINE = LlamaCppEngine()
PLATFORM = Platform("llamacpp", "1", "here", "stored")
PLAIN = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@contextmanager
def serving(folder: Path, model: Path, **arguments: Any) -> Iterator[EngineConnection]:
    """An instance with a model, ready."""
    target = builders.target(engine_args=LlamaCppArgs(**{"context_size": 512, "threads": 1, **arguments}))
    node = NativeNode(folder)
    with node.running(model, target) as connection:

        def ready() -> bool:
            try:
                return ENGINE.ready(connection)
            except EngineUnreachable:
                return False

        eventually(ready, "llama.cpp is ready")
        yield connection


def document(spec: ProbeSpec) -> ProbeDocument:
    """A probe as nodes read it: through its text."""
    made = ProbeDocument(
        api_version="reconcile/v1alpha1", kind="Probe", metadata=ProbeMetadata(name="p", model="m:v1"), spec=spec
    )
    return ProbeDocument.model_validate_json(made.to_json())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> ProbeDocument:
    """Recorded from the honest model, with thresholds from honest runs."""
    folder = tmp_path_factory.mktemp("recorded")
    with serving(folder / "node", write_variant(folder / "model")) as connection:
        manifest = builders.manifest_digest("m:v1")
        provenance = Provenance(engine="llamacpp", version="1", manifest=manifest, machine="test")
        spec = record(ENGINE, connection, provenance)
        runs = [
            answers(ENGINE, connection, spec.forced, seed="order"),
            answers(ENGINE, connection, spec.forced, seed="x", load=3),
        ]
    reference = [case.top for case in spec.forced]
    thresholds = calibrate([honest_run(spec.forced, reference, run) for run in runs], PLATFORM)
    return document(spec.model_copy(update={"calibrations": (thresholds,)}))


def judged(connection: EngineConnection, probe: ProbeDocument, seed: int = 1) -> tuple[Verdict, Evidence]:
    """A validation of what serves."""
    return validate(
        ENGINE, connection, probe, platform=PLATFORM, seed=f"{seed:032x}", clock=host_ports().clock, stop=StopEvent()
    )


def test_a_recorded_probe_has_everything(recorded: ProbeDocument) -> None:
    """Conversations, texts, continuations with their distributions, and enough to draw from."""
    spec = recorded.spec
    assert len(spec.tokenizer) >= 4
    assert len(spec.texts) > 12
    assert sum(case.special for case in spec.texts) == 1
    assert all(len(case.top) == len(case.tokens) for case in spec.greedy)
    assert len(spec.forced) == 24
    assert [look.tokens for look in spec.calibrations[0].looks] == [96, 192, 320]
    assert len(recorded.to_json()) < 2**19


@pytest.mark.parametrize("arguments", [{}, {"parallel": 4, "context_size": 1024}], ids=["again", "batches"])
def test_honest_instances_pass(recorded: ProbeDocument, tmp_path: Path, arguments: dict[str, Any]) -> None:
    """Started otherwise, asked in other orders, with warm caches: the same model, every time, within the budget."""
    with serving(tmp_path / "node", write_variant(tmp_path / "model"), **arguments) as connection:
        for seed in range(4):
            verdict, _ = judged(connection, recorded, seed)
            assert (verdict.outcome, verdict.strength) == ("pass", "calibrated"), verdict.message
            assert verdict.tokens <= 600


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"seed": 2}, "weights"),
    "perturbed tensor": ({"change": perturbed("blk.0.attn_q.weight", 0.1)}, "weights"),
    "layers swapped": ({"change": swapped_layers}, "weights"),
    "eight-bit weights": ({"change": rounded(8)}, "weights"),
    "four-bit weights": ({"change": rounded(4)}, "weights"),
    "another tokenizer": ({"swap_words": True}, "texts"),
    "another template": ({"template": PLAIN}, "tokenizer"),
    "no beginning of sequence": ({"bos": False}, "tokenizer"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_sibling_with_one_fault_fails(recorded: ProbeDocument, tmp_path: Path, fault: str) -> None:
    """By the test that is meant for it, in every draw (I2)."""
    changes, test = FAULTS[fault]
    with serving(tmp_path / "node", write_variant(tmp_path / "model", **changes)) as connection:
        for seed in range(2):
            verdict, _ = judged(connection, recorded, seed)
            assert (verdict.outcome, verdict.findings[-1].test) == ("fail", test), verdict.message


class Corrupted:
    """Stands between: the real engine's answers, changed on their way."""

    def __init__(self, connection: EngineConnection, how: str, canned: dict[str, JsonValue]) -> None:
        self._connection = connection
        self._how = how
        self.canned = canned
        self._count = 0

    def peer(self, *, timeout: float) -> int:
        """The engine's."""
        return self._connection.peer(timeout=timeout)

    def request(
        self, method: str, path: str, body: JsonValue = None, *, timeout: float, limit: int = 2**22
    ) -> JsonValue:
        """What the engine says, or what this says that it does."""
        given: Any = body
        key = f"{path} {json.dumps(given, sort_keys=True)}"
        if self._how == "canned" and path == "/completion":
            # It has heard some answers, and tells one of them to every question that it has not heard.
            return self.canned.get(key, next(iter(self.canned.values()), None))
        if self._how == "seedless" and path == "/completion" and given.get("temperature"):
            self._count += 1
            given = {**given, "seed": self._count}
        if self._how == "cold" and path == "/completion":
            given = {**given, "temperature": 0}
        if self._how == "forgetful" and path == "/completion" and given.get("cache_prompt"):
            # A cache that is one token behind.
            given = {**given, "prompt": given["prompt"][:-1]}
        answer: Any = self._connection.request(method, path, given, timeout=timeout, limit=limit)
        if self._how == "heard" and path == "/completion":
            self.canned[key] = answer
        if self._how == "even" and isinstance(answer, dict):
            for position in answer.get("completion_probabilities", ()):
                for entry in position["top_logprobs"]:
                    entry["logprob"] = -6.0
        return answer


@pytest.mark.parametrize(
    ("how", "test"),
    [("even", "weights"), ("seedless", "sampler"), ("cold", "sampler"), ("forgetful", "cache")],
)
def test_a_server_that_corrupts_honest_answers_fails(
    recorded: ProbeDocument, tmp_path: Path, how: str, test: str
) -> None:
    """Uniform log-probabilities, a sampler without seed or temperature, a cache that is a token behind."""
    with serving(tmp_path / "node", write_variant(tmp_path / "model")) as connection:
        verdict, _ = judged(Corrupted(connection, how, {}), recorded)
        failed = [item.test for item in verdict.findings if item.outcome == "fail"]
        assert (verdict.outcome, failed) == ("fail", [test]), verdict.message


def test_canned_answers_do_not_last(recorded: ProbeDocument, tmp_path: Path) -> None:
    """A proxy that has heard one whole validation passes none that asks for other cases (I2)."""
    heard: dict[str, JsonValue] = {}
    with serving(tmp_path / "node", write_variant(tmp_path / "model")) as connection:
        verdict, evidence = judged(Corrupted(connection, "heard", heard), recorded, 1)
        assert verdict.outcome == "pass"
        assert heard
        known = {item.case for item in evidence.forced}
        for seed in range(2, 8):
            verdict, evidence = judged(Corrupted(connection, "canned", heard), recorded, seed)
            assert {item.case for item in evidence.forced} - known
            assert verdict.outcome == "fail"


def test_json_is_tried_for_real(recorded: ProbeDocument, tmp_path: Path) -> None:
    """The engine holds even a model that knows nothing to the form that it was asked for."""
    with serving(tmp_path / "node", write_variant(tmp_path / "model")) as connection:
        verdict, evidence = validate(
            ENGINE,
            connection,
            recorded,
            platform=PLATFORM,
            seed="00" * 16,
            clock=host_ports().clock,
            stop=StopEvent(),
            tasks=("json",),
        )
        assert [name for name, _ in evidence.tasks] == ["json"]
        assert (verdict.outcome, verdict.findings[-1].test) == ("pass", "json"), verdict.message

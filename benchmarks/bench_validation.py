"""What a validation that passes costs: tokens, and seconds beside the engine writing as many without any question."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from runtime.engines.llamacpp import LlamaCppEngine
from runtime.host import StopEvent, host_ports
from runtime.validation.calibrate import calibrate
from runtime.validation.evidence import Platform
from runtime.validation.record import answers, honest_run, record
from runtime.validation.run import validate
from schemas.errors import EngineUnreachable
from schemas.probe import ProbeDocument, ProbeMetadata, Provenance
from schemas.runtimes import LlamaCppArgs
from tests.contracts.backend_contract import eventually
from tests.support import builders
from tests.support.engines import NativeNode
from tests.support.variants import write_variant

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.conftest import Figure
    from runtime.interfaces import EngineConnection

ENGINE = LlamaCppEngine()
PLATFORM = Platform("llamacpp", "1", "here", "stored")
VALIDATIONS = 30


def is_ready(connection: EngineConnection) -> bool:
    """Whether it serves by now."""
    try:
        return ENGINE.ready(connection)
    except EngineUnreachable:
        return False


def probe(connection: EngineConnection) -> ProbeDocument:
    """Recorded from the instance, with thresholds."""
    manifest = builders.manifest_digest("m:v1")
    spec = record(ENGINE, connection, Provenance(engine="llamacpp", version="1", manifest=manifest, machine="here"))
    run = honest_run(
        spec.forced, [case.top for case in spec.forced], answers(ENGINE, connection, spec.forced, seed="again")
    )
    return ProbeDocument(
        api_version="reconcile/v1alpha1",
        kind="Probe",
        metadata=ProbeMetadata(name="p", model="m:v1"),
        spec=spec.model_copy(update={"calibrations": (calibrate([run], PLATFORM),)}),
    )


def test_validation_seconds(figure: Figure, tmp_path: Path) -> None:
    """Medians over validations with a seed each; all of them pass."""
    target = builders.target(engine_args=LlamaCppArgs(context_size=512, threads=1))
    clock = host_ports().clock
    with NativeNode(tmp_path / "node").running(write_variant(tmp_path / "model"), target) as connection:
        eventually(lambda: is_ready(connection), "llama.cpp is ready")
        document = probe(connection)
        prompt = document.spec.greedy[0].prompt
        tokens, seconds, plain = [], [], []
        for number in range(VALIDATIONS):
            begun = time.perf_counter()
            verdict, _ = validate(
                ENGINE,
                connection,
                document,
                platform=PLATFORM,
                seed=f"{number:032x}",
                clock=clock,
                stop=StopEvent(),
            )
            seconds.append(time.perf_counter() - begun)
            assert verdict.outcome == "pass", verdict.message
            tokens.append(verdict.tokens)
            begun = time.perf_counter()
            ENGINE.sample(connection, prompt, tokens=verdict.tokens, seed=number, temperature=1.0)
            plain.append(time.perf_counter() - begun)
    figure("validation_tokens_p50", statistics.median(tokens), "tokens", goal="<= 600")
    figure(
        "validation_seconds",
        statistics.median(seconds),
        "s",
        goal="<= 2",
        peer="llama.cpp writing as many tokens in one request",
        peer_value=statistics.median(plain),
    )

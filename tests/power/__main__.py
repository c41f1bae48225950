"""Make the table of power: `make power` writes docs/power.md and docs/power.svg.

Usage: `python -m tests.power MODELS [--torch PYTHON] [--vllm PYTHON] [--trials 300] [--honest 3000]`

MODELS is the folder that `tests.power.train` fills (an environment with torch runs that first). With an interpreter
that has torch and transformers, probes are recorded from transformers in 32 bits as well; with one that has vLLM, its
rows are made. What is missing has no table. Answers are kept beside the models: a second run asks no engine again.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.hardware import HostHardware
from runtime.host import host_ports
from runtime.validation.reference import transformers_reference
from schemas.errors import EngineUnreachable
from schemas.probe import ProbeSpec
from tests.power import serving
from tests.power.faulty import Canned, Seedless, Tepid
from tests.power.laboratory import HONEST, Laboratory, LlamaCpp, Vllm, remade
from tests.power.probing import calibrated, curve, honest_run, limits, record_halves, tokens_for
from tests.power.report import Row, Section, write
from tests.power.serving import Remembered
from tests.power.tokenizers import tokenizer_rows
from tests.power.trials import Numbers, trials

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from schemas.probe import ProbeDocument

ROOT = Path(__file__).parents[2]


def say(message: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {message}\n")


def section(
    bench: LlamaCpp | Vllm,
    halves: tuple[ProbeSpec, ProbeSpec],
    reference: str,
    numbers: Numbers,
    asked: Sequence[ProbeSpec],
) -> Section:
    """One table: one engine with one kind of numbers, against one reference."""
    chosen, judged = halves
    platform = bench.platform
    say(f"{bench.label} against {reference}: honest runs")
    honest = bench.honest(halves)
    runs = [honest_run(engine, chosen) for engine in honest.values()]
    document = calibrated(judged, runs, platform)
    allowed = limits(runs, platform)
    rows = []
    quiet = [engine.without_sampler() for engine in honest.values()]
    rows.append(Row("honest, all circumstances", trials(quiet, document, platform, numbers.honest), honest=True))
    curves = {"honest": curve(quiet[0], judged)}
    for name, engine in zip(honest, quiet, strict=True):
        say(f"{bench.label} against {reference}: {name}")
        count = trials([engine], document, platform, numbers.faults, name="one")
        rows.append(Row(f"honest: {name}", count, honest=True))
    for name, engine in bench.faulty(asked):
        say(f"{bench.label} against {reference}: {name}")
        found = curve(engine, judged)
        curves[name] = found
        count = trials([engine.without_sampler()], document, platform, numbers.faults)
        rows.append(Row(name, count, tokens_for(0.99, found, allowed)))
    first = next(iter(honest.values()))
    given = [[(case.prompt, case.tokens) for case in spec.forced] for spec in halves]
    for name, seen in (
        ("a proxy with canned answers to other prompts", given[0]),
        ("a proxy with canned answers to half of the probe", [*given[0], *given[1][::2]]),
        ("a proxy with canned answers to all of the probe", given[1]),
    ):
        say(f"{bench.label} against {reference}: {name}")
        engine = Canned(first, seen).without_sampler()
        rows.append(Row(name, trials([engine], document, platform, numbers.faults)))
    (calibration,) = document.spec.calibrations
    return Section(bench.label, reference, platform, calibration, rows, curves, allowed, tuple(bench.missing))


def beside(
    make: Callable[[LlamaCpp, ProbeDocument, Remembered, Numbers], list[Row]],
    bench: LlamaCpp,
    halves: tuple[ProbeSpec, ProbeSpec],
    numbers: Numbers,
) -> list[Row]:
    """Rows of what is wrong beside the weights, with the thresholds of honest ones."""
    honest = bench.honest(halves)
    document = calibrated(halves[1], [honest_run(engine, halves[0]) for engine in honest.values()], bench.platform)
    return make(bench, document, next(iter(honest.values())), numbers)


def sampler_rows(bench: LlamaCpp, document: ProbeDocument, first: Remembered, numbers: Numbers) -> list[Row]:
    """What is drawn cannot be remembered: samplers are asked in every trial."""
    rows = []
    path = bench.laboratory.gguf(HONEST, bench.kind)
    with serving.llamacpp(path) as connection:
        for name, engine, count, is_honest in (
            ("honest: whole validations, sampler and caches included", Remembered(first.engine), numbers.honest, True),
            ("sampler ignores the seed", Seedless(first.engine), numbers.faults, False),
            ("sampler ignores the temperature: always the likeliest", Tepid(first.engine, 0.0), numbers.faults, False),
            ("sampler ignores the temperature: always 1", Tepid(first.engine, 1.0), numbers.faults, False),
        ):
            say(f"{bench.label}: {name}")
            engine.known = first.known
            found = trials([engine], document, bench.platform, count, connection=connection, name="live")
            rows.append(Row(name, found, honest=is_honest))
    return rows


def main(options: argparse.Namespace) -> int:
    """Make all of it."""
    laboratory = Laboratory(options.models, options.models / "answers")
    architecture = HostHardware(laboratory.work).read().architecture
    numbers = Numbers(options.trials, options.honest)
    reference: Any = None
    if options.torch:
        reference = transformers_reference(host_ports().processes, str(options.torch), laboratory.work / "reference")
    sections: list[Section] = []
    benches: list[Any] = [
        LlamaCpp(laboratory, kind, architecture, version("xllamacpp")) for kind in options.kinds.split(",")
    ]
    if options.vllm:
        benches.append(Vllm(laboratory, options.vllm, "bfloat16", architecture, options.vllm_version))
    extra: list[Row] = []
    for bench in benches:
        probes = {"its own build": recorded(bench, laboratory, None)}
        if reference:
            try:
                probes["transformers, 32 bits"] = recorded(bench, laboratory, reference)
            except EngineUnreachable:
                bench.missing.append("a comparison with transformers")
        for label, halves in sorted(probes.items(), reverse=True):
            path = laboratory.work / f"{bench.label} {label} {options.trials} {options.honest}.section"
            asked = [judged for _chosen, judged in probes.values()]
            sections.append(remade(path, partial(section, bench, halves, label, numbers, asked)))
    if isinstance(benches[0], LlamaCpp):
        for name, make in (("tokenizers", tokenizer_rows), ("samplers", sampler_rows)):
            path = laboratory.work / f"{benches[0].label} {name} {options.trials} {options.honest}.section"
            own = recorded(benches[0], laboratory, None)
            extra += remade(path, partial(beside, make, benches[0], own, numbers))
    write(ROOT / "docs", sections, extra, models=options.models)
    return 0


def recorded(bench: LlamaCpp | Vllm, laboratory: Laboratory, reference: Any) -> tuple[ProbeSpec, ProbeSpec]:
    """Probes of both halves of the passages."""
    path = laboratory.work / f"{bench.label} probe {'own' if reference is None else 'reference'}.json"
    if path.exists():
        one, other = path.read_text().splitlines()
        return ProbeSpec.model_validate_json(one), ProbeSpec.model_validate_json(other)
    say(f"{bench.label}: recording")
    if reference is not None:
        laboratory.folder(HONEST, "reference")
    with bench.recording() as (engine, connection):
        halves = record_halves(engine, connection, laboratory.passages, bench.platform, reference=reference)
    path.write_text("\n".join(half.model_dump_json() for half in halves))
    return halves


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the table of power.")
    parser.add_argument("models", type=Path)
    parser.add_argument("--torch", type=Path, help="interpreter with torch and transformers")
    parser.add_argument("--vllm", type=Path, help="interpreter with vLLM")
    parser.add_argument("--vllm-version", default="0.32.0")
    parser.add_argument("--kinds", default="F16,BF16")
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--honest", type=int, default=3000)
    sys.exit(main(parser.parse_args()))

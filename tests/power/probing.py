"""Probes of the small model: recorded and calibrated on some passages, judged on others."""

from __future__ import annotations

from itertools import accumulate
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from runtime.validation.calibrate import calibrate
from runtime.validation.evidence import draw
from runtime.validation.judge import told
from runtime.validation.record import record
from runtime.validation.statistics import differences
from schemas.digests import digest_text
from schemas.probe import MAX_PROMPTS, ProbeDocument, Provenance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runtime.validation.calibrate import HonestRun
    from runtime.validation.evidence import Platform
    from schemas.probe import ProbeSpec
    from tests.power.serving import Remembered

GRID: Final = (24, 48, 72, 96, 144, 192, 240, 312)
"""Numbers of tokens at which the evidence is drawn in the plot."""


def record_halves(
    engine: Remembered, connection: Any, passages: Sequence[str], platform: Platform, *, reference: Any = None
) -> tuple[ProbeSpec, ProbeSpec]:
    """Two probes of the same model: one for choosing thresholds, one of other passages for judging."""
    recorded = Provenance(
        engine=platform.engine if reference is None else "transformers",
        version=platform.version,
        manifest=digest_text("the small model"),
        machine="any",
        architecture=platform.architecture,
        dtype=platform.dtype,
    )
    half = min(len(passages) // 2, MAX_PROMPTS)
    parts = passages[:half], passages[half : 2 * half]
    first, second = (
        record(engine, connection, recorded, passages=part, reference=reference)  # type: ignore[arg-type]
        for part in parts
    )
    return first, second


def honest_run(engine: Remembered, spec: ProbeSpec) -> HonestRun:
    """How an engine's remembered answers differ from a probe's."""
    return tuple(
        differences(told(case, case.top), engine.force(None, case.prompt, case.tokens)) for case in spec.forced
    )


def calibrated(spec: ProbeSpec, runs: Sequence[HonestRun], platform: Platform) -> ProbeDocument:
    """The judged probe, with thresholds from honest runs over the other one."""
    with_thresholds = spec.model_copy(update={"calibrations": (calibrate(runs, platform),)})
    document = {
        "apiVersion": "reconcile/v1alpha1",
        "kind": "Probe",
        "metadata": {"name": "small", "model": "small:v1"},
        "spec": with_thresholds.model_dump(),
    }
    return ProbeDocument.model_validate(document)


def limits(runs: Sequence[HonestRun], platform: Platform) -> dict[int, float]:
    """What may be rejected at each number of tokens, were it the only look."""
    return {size: calibrate(runs, platform, sizes=(size,)).looks[0].reject for size in GRID}


def curve(engine: Remembered, spec: ProbeSpec, *, draws: int = 300) -> dict[int, list[float]]:
    """The statistic after each number of tokens, for so many draws."""
    sums = [(len(case), sum(item.variance for item in case)) for case in honest_run(engine, spec)]
    found: dict[int, list[float]] = {size: [] for size in GRID}
    for number in range(draws):
        order = draw(f"curve {number}", len(sums))
        path = list(accumulate((sums[case] for case in order), lambda one, two: (one[0] + two[0], one[1] + two[1])))
        for size in GRID:
            tokens, total = next((item for item in path if item[0] >= size), path[-1])
            found[size].append(total / tokens)
    return found


def tokens_for(share: float, found: dict[int, list[float]], allowed: dict[int, float]) -> int | None:
    """The least number of tokens from which on at least this share of draws is above what is allowed."""
    least = None
    for size in reversed(GRID):
        values = found[size]
        if sum(value > allowed[size] for value in values) < share * len(values):
            break
        least = size
    return least


def middle(values: Sequence[float]) -> float:
    """Median."""
    return median(values)

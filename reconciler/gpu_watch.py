"""What a look shows to have happened to GPUs since the one before, and what follows from it. Pure.

A GPU that has reported an error computes on, perhaps wrongly: what is proven with it is tested again. One that is lost
is a matter of the instance on it (`reconciler.gpus`), one with another driver of its receipts (`reconciler.proof`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from reconciler.memory import AskRetest, Note
from schemas.observation import Present

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reconciler.memory import Change
    from schemas.observation import Gpu, Hardware, Observed

FACT: Final = "gpus"
"""Under which the journal keeps what the last look has shown."""

AGAIN: Final = timedelta(minutes=10)
"""Until the same report of the same GPU is worth another event, and another test: one that fails repeats itself."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What followed from a look."""

    changes: tuple[Change, ...]
    fact: str
    """What the journal should keep of it; as it was where nothing has changed."""


def watched(observed: Observed, before: str, now: datetime) -> Watched:
    """Compare a look with what was kept of the one before.

    Args:
        observed: the look.
        before: what was kept; empty for none.
        now: the time.
    """
    hardware = observed.state.hardware
    known = json.loads(before) if before else {}
    if not hardware.gpus and not known:
        return Watched((), before)
    said = {key: at for key, at in known.get("said", {}).items() if _is_recent(at, now)}
    changes: list[Change] = []
    for uuid, what in (*_reported(hardware, known.get("report", "")), *_counted(hardware, known.get("gpus", {}))):
        key = f"{uuid} {what}"
        if key not in said:
            said[key] = now.isoformat()
            changes += _in_doubt(observed, uuid, f"{uuid or 'a GPU'} reported {what}")
    changes += _changed(hardware, known.get("gpus", {}))
    reports = hardware.gpu_reports
    kept = {
        "gpus": _kept(hardware, known.get("gpus", {})),
        "report": reports[-1].id if reports else known.get("report", ""),
        "said": said,
    }
    return Watched(tuple(changes), json.dumps(kept, sort_keys=True) if kept != known else before)


def _is_recent(at: str, now: datetime) -> bool:
    # What a clock that was set back dates into the future is over.
    return timedelta() <= now - datetime.fromisoformat(at) < AGAIN


def _reported(hardware: Hardware, last: str) -> Iterator[tuple[str, str]]:
    """What came after the last report that was noted, by GPU; all of it where that one is forgotten, or another's."""
    ids = [report.id for report in hardware.gpu_reports]
    news = hardware.gpu_reports[ids.index(last) + 1 :] if last in ids else hardware.gpu_reports
    for report in news:
        yield report.uuid, report.what


def _counted(hardware: Hardware, known: Mapping[str, dict[str, object]]) -> Iterator[tuple[str, str]]:
    """Memory errors that could not be corrected; a driver that was loaded anew counts from zero."""
    for gpu in hardware.gpus:
        before = known.get(gpu.uuid, {}).get("uncorrected")
        count = gpu.ecc_uncorrected
        if isinstance(before, int) and count is not None and count > before:
            yield gpu.uuid, "memory errors that could not be corrected"


def _changed(hardware: Hardware, known: Mapping[str, dict[str, object]]) -> Iterator[Note]:
    for gpu in hardware.gpus:
        before = known.get(gpu.uuid, {})
        if gpu.fault and gpu.fault != before.get("fault"):
            yield Note("Warning", "GpuFault", f"{gpu.uuid} ({gpu.name}) {gpu.fault}", subject=gpu.uuid)
        if before.get("fault") and _is_well(gpu):
            yield Note("Normal", "GpuRecovered", f"{gpu.uuid} ({gpu.name}) computes again", subject=gpu.uuid)
        if gpu.driver and before.get("driver", gpu.driver) != gpu.driver:
            message = f"{gpu.uuid}: the driver is {gpu.driver}, not {before['driver']}"
            yield Note("Normal", "GpuDriverChanged", message, subject=gpu.uuid)
    if hardware.gpus and not hardware.gpu_trouble:
        for uuid in sorted(known.keys() - {gpu.uuid for gpu in hardware.gpus}):
            yield Note("Warning", "GpuFault", f"{uuid} is no longer there", subject=uuid)


def _is_well(gpu: Gpu) -> bool:
    # A driver that says nothing calls no GPU lost, and none well.
    return not gpu.fault and gpu.temperature is not None


def _kept(hardware: Hardware, known: Mapping[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    if not hardware.gpus or (hardware.gpu_trouble and not any(gpu.memory_free for gpu in hardware.gpus)):
        return dict(known)
    found: dict[str, dict[str, object]] = {}
    for gpu in hardware.gpus:
        before = known.get(gpu.uuid, {})
        fault = gpu.fault or ("" if _is_well(gpu) else before.get("fault", ""))
        count = gpu.ecc_uncorrected if gpu.ecc_uncorrected is not None else before.get("uncorrected")
        found[gpu.uuid] = {"driver": gpu.driver or before.get("driver", ""), "fault": fault, "uncorrected": count}
    return found


def _in_doubt(observed: Observed, uuid: str, what: str) -> Iterator[Change]:
    """The event, and a test of what is proven with that GPU; with any, where it is not said which it was."""
    yield Note("Warning", "GpuFault", what, subject=uuid)
    running = {
        item.intent
        for seen in observed.state.backends.values()
        if isinstance(seen, Present)
        for item in seen.value
        if item.status == "running" and (uuid in item.gpus or (not uuid and item.gpus))
    }
    receipts = observed.memory.receipts
    for manifest in sorted({receipt.manifest for receipt in receipts if receipt.intent in running}):
        yield AskRetest(manifest, what)

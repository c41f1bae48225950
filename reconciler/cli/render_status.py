"""Status, history and events as people read them. Text in, text out; the terminal is `console`'s."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reconciler.cli.console import duration, paint, plural, relative_time, size, table
from reconciler.cli.render_plan import drift_lines, held_lines
from reconciler.cli.steps import plan_lines, wanted_line
from schemas.digests import short

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from reconciler.journal import Event, PassRecord
    from schemas.status import (
        ComingStatus,
        FrontStatus,
        GpuStatus,
        HardwareStatus,
        NextStatus,
        NodeStatus,
        ReceiptStatus,
        StoreStatus,
    )

MOST_SHOWN: Final = 6
"""Lines of what is to come; `status --json` has all."""
_CONDITION_COLOURS: Final = {("Ready", "True"): "green", ("SourceVerified", "True"): "green"}
_BAD_WHEN_TRUE: Final = ("Stalled", "Drifted", "RolledBack")


def status_text(status: NodeStatus, now: datetime) -> str:
    """The node's report for people."""
    lines = [
        f"{paint('Node', 'bold')}      {status.node}",
        f"Network   {status.network}" + (f", account {status.account}" if status.account else ""),
        f"Snapshot  {_snapshot_line(status, now)}",
        f"Wanted    {wanted_line(status.wanted)}",
        f"Serving   {_serving_line(status, now)}",
    ]
    if status.serving is not None and status.serving.proof is not None:
        lines.append(f"Receipt   {_proof_line(status.serving.proof, now)}")
    if status.receipts is not None and status.receipts.pending:
        why = f": {status.receipts.locked}" if status.receipts.locked else ", which follow while the node rests"
        lines.append(f"Unsigned  {plural(status.receipts.pending, 'receipt')} without the node's signature{why}")
    if status.front is not None:
        lines.append(f"Front     {_front_line(status.front)}")
    if status.serving is not None:
        lines.append(f"Socket    {status.serving.socket}")
        if status.serving.not_enforced:
            lines.append(f"Isolation not enforced here: {', '.join(status.serving.not_enforced)}")
    lines += ["", *_condition_lines(status, now), "", *drift_lines(status.drift), *_model_lines(status, now)]
    lines += held_lines(status.held, now)
    lines += plan_lines(status.plan, now)
    if status.store is not None:
        lines += ["", *_store_lines(status.store)]
    machine = status.hardware
    gpus = plural(len(machine.gpus), "GPU") if machine.gpus else "no GPU"
    lines += [
        "",
        f"Machine   {machine.processor}, {machine.cpus} CPUs, {size(machine.memory)} memory, {gpus}",
        *(f"GPU       {line}" for line in gpu_lines(machine)),
        f"Disk      {size(machine.disk_free)} of {size(machine.disk)} free",
        f"Agent     {status.agent}; native engines: {', '.join(status.engines) or 'none'}",
        f"As of     {relative_time(status.updated_at, now)}",
    ]
    if status.next is not None:
        lines.append(f"Next look {_next_line(status.next, now)}")
        others = [item for item in status.next.coming if item.why != status.next.why]
        lines += [f"Then      {_next_line(item, now)}" for item in others[:MOST_SHOWN]]
    return "\n".join(lines)


def gpu_lines(machine: HardwareStatus) -> list[str]:
    """Each GPU as it was read, and what cannot be used or read."""
    return [
        *map(_gpu_line, machine.gpus),
        *machine.unsupported,
        *([machine.gpu_trouble] if machine.gpu_trouble else []),
    ]


def _gpu_line(gpu: GpuStatus) -> str:
    parts = [f"{gpu.uuid} {gpu.name}"]
    if gpu.fault:
        parts.append(gpu.fault.upper())
    known = gpu.temperature is not None
    parts.append(f"{size(gpu.memory_free)} of {size(gpu.memory)} free" if known else size(gpu.memory))
    parts += [f"{gpu.temperature} °C"] if known else []
    if gpu.ecc_uncorrected is not None:
        parts.append(f"{gpu.ecc_uncorrected} uncorrected and {gpu.ecc_corrected or 0} corrected memory errors")
    parts.append(f"driver {gpu.driver}" + (f", CUDA {gpu.cuda}" if gpu.cuda else ""))
    strangers = [process for process in gpu.processes or () if not process.instance]
    if strangers:
        held = sum(process.memory or 0 for process in strangers)
        parts.append(f"{plural(len(strangers), 'process', 'processes')} of others with {size(held)}")
    if gpu.holder:
        parts.append(f"in use by {gpu.holder}")
    return ", ".join(parts)


def _next_line(coming: NextStatus | ComingStatus, now: datetime) -> str:
    left = (coming.at - now).total_seconds()
    return f"{f'in {duration(left)}' if left >= 1 else 'due'}: {coming.why}"


def _store_lines(store: StoreStatus) -> list[str]:
    guarded = "the kernel refuses changed bytes (fs-verity)"
    if store.unguarded:
        guarded = f"no fs-verity ({store.unguarded}): changed bytes are found before a start, and by the scrub"
    scrub = (
        f"every model within {duration(store.scrub_every)}, at {size(store.scrub_rate)}/s"
        if store.scrub_rate
        else "off"
    )
    return [f"Store     {guarded}", f"Scrub     {scrub}"]


def summary_text(status: NodeStatus) -> str:
    """The end of a pass in a few lines: ready or not, and why."""
    lines = []
    for type_ in ("Ready", "RolledBack", "Stalled", "SourceVerified", "Suspended"):
        condition = status.condition(type_)
        if condition is None:
            continue
        good = condition.status == ("True" if type_ in ("Ready", "SourceVerified") else "False")
        remark = type_ == "SourceVerified" and condition.reason != "Verified"
        if good and type_ != "Ready" and not remark:
            continue
        colour = "yellow" if good and remark else "green" if good else "red"
        lines.append(f"{paint(type_, colour)}={condition.status} {condition.reason}: {condition.message}")
    return "\n".join(lines)


def models_text(status: NodeStatus, now: datetime) -> str:
    """The node's models."""
    return "\n".join(_model_lines(status, now))


def _snapshot_line(status: NodeStatus, now: datetime) -> str:
    seen = status.snapshot
    if seen is None:
        return "none accepted yet"
    ends = "expired" if seen.expires_at <= now else "expires"
    return (
        f"{seen.sequence} (epoch {seen.epoch}, {short(seen.digest)}), {len(seen.signers)} signers, "
        f"accepted {relative_time(seen.accepted_at, now)}, {ends} {relative_time(seen.expires_at, now)}"
    )


def _serving_line(status: NodeStatus, now: datetime) -> str:
    seen = status.serving
    if seen is None:
        return paint("nothing", "red")
    since = f", since {relative_time(seen.since, now)}" if seen.since else ""
    proof = f"receipt {short(seen.receipt)}" if seen.receipt else paint("no receipt", "red")
    return f"{paint(seen.model, 'bold')} on {seen.engine} ({seen.backend}), {seen.health}, {proof}{since}"


def _proof_line(proof: ReceiptStatus, now: datetime) -> str:
    signed = "signed" if proof.signed else paint("not signed yet", "yellow")
    strength = f", by {proof.strength}" if proof.strength else ""
    line = f"number {proof.number}, {relative_time(proof.issued_at, now)}{strength}, {signed}"
    if proof.retest_from is None or proof.retest_by is None:
        return line
    if now >= proof.retest_from:
        return f"{line}; retest in the next quiet moment, by {proof.retest_by:%Y-%m-%d %H:%M}Z"
    return f"{line}; next retest {relative_time(proof.retest_from, now)}, by {proof.retest_by:%Y-%m-%d %H:%M}Z"


def _front_line(front: FrontStatus) -> str:
    state = paint(front.state, "green" if front.state == "serving" else "red")
    counts = front.counts
    if counts is None:
        return f"{front.socket}  {state}"
    lost = counts.cut + counts.cut_by_drain + counts.failed
    return (
        f"{front.socket}  {state}: {counts.in_flight} in flight, {counts.held} held, {counts.served} served"
        + (f", {counts.unavailable} unavailable" if counts.unavailable else "")
        + (f", {lost} failed or cut" if lost else "")
    )


def _condition_lines(status: NodeStatus, now: datetime) -> list[str]:
    rows = []
    for condition in status.conditions:
        colour = _CONDITION_COLOURS.get((condition.type, condition.status), "")
        if condition.type in _BAD_WHEN_TRUE and condition.status == "True":
            colour = "red"
        if condition.type in ("Ready", "SourceVerified") and condition.status != "True":
            colour = "red"
        elif condition.type == "SourceVerified" and condition.reason != "Verified":
            colour = "yellow"
        rows.append(
            (
                condition.type,
                paint(condition.status, colour) if colour else condition.status,
                condition.reason,
                relative_time(condition.since, now),
                condition.message,
            )
        )
    return table(("Condition", "Status", "Reason", "Since", "Message"), rows)


def _model_lines(status: NodeStatus, now: datetime) -> list[str]:
    if not status.models:
        return ["No models."]
    rows = [
        (
            model.model,
            model.state + (" (loaded)" if model.loaded else ""),
            size(model.size),
            short(model.manifest),
            relative_time(model.since, now),
            model.cause,
        )
        for model in status.models
    ]
    return table(("Model", "State", "Size", "Manifest", "Since", "Cause"), rows)


def history_text(passes: Sequence[PassRecord], now: datetime) -> str:
    """Passes that had something to do, newest first."""
    if not passes:
        return "Nothing was done yet."
    rows = [
        (
            str(item.number),
            relative_time(item.started_at, now),
            str(item.sequence),
            short(item.snapshot) or "-",
            item.outcome,
            duration((item.finished_at - item.started_at).total_seconds()) if item.finished_at else "-",
            duration(item.downtime_ms / 1000) if item.downtime_ms else "-",
            item.summary,
        )
        for item in passes
    ]
    header = ("Pass", "When", "Snapshot", "Digest", "Outcome", "Took", "Downtime", "What")
    return "\n".join(table(header, rows))


def event_line(event: Event) -> str:
    """One event."""
    reason = paint(f"{event.reason:<20}", "red" if event.type == "Warning" else "cyan")
    return f"{event.at:%Y-%m-%d %H:%M:%SZ}  {reason} {event.message}"

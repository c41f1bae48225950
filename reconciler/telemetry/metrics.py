"""A node in numbers, for Prometheus. The only importer of its client.

Names follow controller-runtime where it has them (`reconcile_total`, `reconcile_errors_total`,
`reconcile_time_seconds` there is `reconcile_duration_seconds` here), with Prometheus' base units. Everything comes from
the results of passes: counters begin anew with the daemon, gauges say what was published last.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from reconciler.status import EXIT_NOT_READY
from schemas.memory import MODEL_TRANSITIONS

if TYPE_CHECKING:
    from reconciler.loop import PassResult
    from schemas.errors import ReconcileError
    from schemas.status import GpuStatus, NodeStatus

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""Of the text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

_PASS_SECONDS: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_DOWN_SECONDS: Final = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300)


# When a series began is not worth a series of its own.
disable_created_metrics()  # type: ignore[no-untyped-call] # the client leaves it without types


class Metrics:
    """The node's metrics. Used by one thread, read by another: the client's own locks are between them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._showing = threading.Lock()
        make = self._registry
        self._passes = Counter(
            "reconcile",
            "Passes, by what came of them: converged, changed, degraded, refused.",
            ["result"],
            registry=make,
        )
        self._seconds = Histogram("reconcile_duration_seconds", "Time of a pass.", registry=make, buckets=_PASS_SECONDS)
        self._errors = Counter("reconcile_errors", "Refusals and failures, by reason.", ["reason"], registry=make)
        self._actions = Counter(
            "reconcile_actions", "Actions, by kind and outcome.", ["kind", "outcome"], registry=make
        )
        self._drift = Counter(
            "reconcile_drift", "Repairs of what was changed from outside, by field.", ["field"], registry=make
        )
        self._downtime = Histogram(
            "reconcile_swap_downtime_seconds",
            "Time in which nothing served, of each pass that interrupted serving.",
            registry=make,
            buckets=_DOWN_SECONDS,
        )
        self._condition = Gauge(
            "reconcile_condition", "1 True, 0 False, -1 Unknown.", ["type", "reason"], registry=make
        )
        self._updated = Gauge("reconcile_status_timestamp_seconds", "When the node last said how it is.", registry=make)
        self._sequence = Gauge("reconcile_snapshot_sequence", "Sequence of the snapshot in force.", registry=make)
        self._expiry = Gauge(
            "reconcile_snapshot_expiry_seconds", "Time until the snapshot in force expires.", registry=make
        )
        self._state = Gauge(
            "reconcile_model_state", "1 for the state that a model is in.", ["model", "state"], registry=make
        )
        self._serving = Gauge(
            "reconcile_serving", "1 for the model that serves.", ["model", "engine", "backend", "health"], registry=make
        )
        self._held = Gauge(
            "reconcile_held", "Changes that are due and held back, by reason.", ["reason"], registry=make
        )
        self._disk = Gauge("reconcile_disk_bytes", "The state directory's disk.", ["which"], registry=make)
        self._gpu = Gauge("reconcile_gpu_memory_bytes", "Memory of a GPU.", ["uuid", "name"], registry=make)
        self._gpu_free = Gauge(
            "reconcile_gpu_memory_free_bytes", "Memory of a GPU that nobody uses.", ["uuid"], registry=make
        )
        self._gpu_used = Gauge(
            "reconcile_gpu_process_memory_bytes",
            "Memory of a GPU, by whose processes have it: an instance of this node, or others.",
            ["uuid", "instance"],
            registry=make,
        )
        self._gpu_celsius = Gauge("reconcile_gpu_temperature_celsius", "Temperature of a GPU.", ["uuid"], registry=make)
        self._gpu_ecc = Gauge(
            "reconcile_gpu_ecc_errors",
            "Memory errors of a GPU since its driver was loaded, corrected or uncorrected.",
            ["uuid", "kind"],
            registry=make,
        )
        self._gpu_fault = Gauge(
            "reconcile_gpu_fault", "1 for a GPU that computes nothing any more.", ["uuid"], registry=make
        )
        self._front = Gauge(
            "reconcile_front_requests", "Requests at the front; in_flight and held: now.", ["which"], registry=make
        )
        self._agent = Gauge("reconcile_agent_info", "The agent.", ["version", "network", "node"], registry=make)

    def passed(self, result: PassResult, seconds: float) -> None:
        """Count a pass that ended."""
        self._seconds.observe(seconds)
        changed = any(outcome.status == "done" for outcome in result.outcomes)
        degraded = result.exit_code == EXIT_NOT_READY
        self._passes.labels("degraded" if degraded else "changed" if changed else "converged").inc()
        for outcome in result.outcomes:
            self._actions.labels(outcome.action.kind, outcome.status).inc()
            if outcome.error is not None:
                self._errors.labels(outcome.error.reason).inc()
        for item in result.drift:
            if item.repaired:
                self._drift.labels(item.field).inc()
        if result.downtime:
            self._downtime.observe(result.downtime)
        self.show(result.status)

    def refused(self, error: ReconcileError, seconds: float) -> None:
        """Count a pass that could not be made."""
        self._seconds.observe(seconds)
        self._passes.labels("refused").inc()
        self._errors.labels(error.reason).inc()

    def show(self, status: NodeStatus) -> None:
        """Set what a status says, at once: a scrape in between would find half of it gone."""
        with self._showing:
            self._show(status)

    def _show(self, status: NodeStatus) -> None:
        of_gpus = (
            *(self._gpu, self._gpu_free, self._gpu_used, self._gpu_celsius, self._gpu_ecc),
            self._gpu_fault,
        )
        for changing in (self._condition, self._state, self._serving, self._held, self._front, *of_gpus):
            changing.clear()  # what is no longer so has no series
        self._agent.labels(status.agent, status.network, status.node).set(1)
        self._updated.set(status.updated_at.timestamp())
        for condition in status.conditions:
            self._condition.labels(condition.type, condition.reason).set(
                {"True": 1, "False": 0}.get(condition.status, -1)
            )
        if status.snapshot is not None:
            self._sequence.set(status.snapshot.sequence)
            end = status.snapshot.expires_at.timestamp()
            # A daemon that stopped making passes must not stop the time.
            self._expiry.set_function(lambda: end - time.time())
        for held in status.held:
            self._held.labels(held.reason).inc()
        self._show_models(status)
        self._show_machine(status)

    def _show_models(self, status: NodeStatus) -> None:
        for model in status.models:
            for state in MODEL_STATES:
                self._state.labels(model.model, state).set(int(model.state == state))
        if status.serving is not None:
            serving = status.serving
            self._serving.labels(serving.model, serving.engine, serving.backend, serving.health).set(1)
        if status.front is not None and status.front.counts is not None:
            for name, value in status.front.counts.model_dump().items():
                self._front.labels(name).set(value)

    def _show_machine(self, status: NodeStatus) -> None:
        self._disk.labels("size").set(status.hardware.disk)
        self._disk.labels("free").set(status.hardware.disk_free)
        for gpu in status.hardware.gpus:
            self._show_gpu(gpu)

    def _show_gpu(self, gpu: GpuStatus) -> None:
        """What is not known of it has no series."""
        self._gpu.labels(gpu.uuid, gpu.name).set(gpu.memory)
        self._gpu_fault.labels(gpu.uuid).set(int(bool(gpu.fault)))
        if gpu.temperature is not None:
            # Only of a GPU that was read is anything free.
            self._gpu_free.labels(gpu.uuid).set(gpu.memory_free)
            self._gpu_celsius.labels(gpu.uuid).set(gpu.temperature)
        for process in gpu.processes or ():
            if process.memory is not None:
                self._gpu_used.labels(gpu.uuid, process.instance or "others").inc(process.memory)
        for kind, count in (("corrected", gpu.ecc_corrected), ("uncorrected", gpu.ecc_uncorrected)):
            if count is not None:
                self._gpu_ecc.labels(gpu.uuid, kind).set(count)

    def text(self) -> bytes:
        """The text format."""
        with self._showing:
            return generate_latest(self._registry)

    def described(self) -> dict[str, tuple[str, str]]:
        """Every metric's type and meaning, by the name under which it is scraped."""
        return {
            metric.name + ("_total" if metric.type == "counter" else ""): (metric.type, metric.documentation)
            for metric in self._registry.collect()
        }


MODEL_STATES: Final = tuple(sorted({state for states in MODEL_TRANSITIONS.values() for state in states}))

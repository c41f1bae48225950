"""Traces of a pass: which spans, with what in them, and that they arrive at a collector."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from reconciler.cli.main import cli
from reconciler.loop import Reconciler
from reconciler.tracing import traced
from schemas.digests import digest_bytes
from schemas.errors import ConfigError, SourceUnreachable
from tests.desired_state import network
from tests.desired_state.network import Repository, snapshot_text
from tests.support.builders import assignment, model, node, snapshot
from tests.support.simulated_node import ScriptedSource, SimulatedNode

pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry not present (reconcile[otel])")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from reconciler.telemetry.traces import SdkTracer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

YEARS = 3650.0
A = snapshot(models=(model("a"),), assignments=(assignment("a:v1"),))


class Traced:
    """A simulated node whose passes are traced into memory."""

    def __init__(self, folder: Path) -> None:
        self.memory = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.memory))
        self.node = SimulatedNode(folder)
        source, recorder = ScriptedSource(self.node), self.node.reconciler._reporter
        self.node.reconciler = Reconciler(self.node.node, source, recorder, tracer=SdkTracer(provider, "1.0"))

    def spans(self) -> dict[str, Any]:
        """What was traced, by name; the last of each."""
        return {span.name: span for span in self.memory.get_finished_spans()}


def test_a_pass_is_a_tree_of_spans(tmp_path: Path) -> None:
    """Everything below the pass, with what it was about."""
    traced_node = Traced(tmp_path)
    assert traced_node.node.run(A).exit_code == 0
    spans = traced_node.spans()
    kinds = ("download-model", "start-instance", "validate-model")
    assert {"pass", "refresh", "observe", "plan", *(f"action {kind}" for kind in kinds)} <= set(spans)
    root = spans["pass"]
    assert root.parent is None
    assert {span.parent.span_id for name, span in spans.items() if name != "pass"} == {root.context.span_id}
    assert root.attributes["reconcile.exit_code"] == 0
    start = spans["action start-instance"]
    assert start.attributes["reconcile.action"] == "start/a:v1"
    assert start.attributes["reconcile.cause"] == "nothing serves"
    assert start.attributes["reconcile.outcome"] == "done"


def test_a_failure_has_its_reason(tmp_path: Path) -> None:
    """Of an action, and of a pass that was refused; the next pass is a trace of its own."""
    traced_node = Traced(tmp_path)
    traced_node.node.room.bad_starts.add("a:v1")
    traced_node.node.run(A)
    start = traced_node.spans()["action start-instance"]
    assert start.attributes["error.type"] == "StartFailed"
    assert not start.status.is_ok
    first = traced_node.spans()["pass"].context.trace_id

    def refuse(_now: object) -> Any:
        raise SourceUnreachable("https://me:hush-hush@git.example.org is away")

    traced_node.node.reconciler._source.refresh = refuse  # type: ignore[method-assign]
    with pytest.raises(SourceUnreachable):
        traced_node.node.reconciler.run_pass()
    root = traced_node.spans()["pass"]
    assert root.attributes["error.type"] == "SourceUnreachable"
    assert "hush" not in str(root.status.description)
    assert root.context.trace_id != first


def test_without_the_extra_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces that are wanted and cannot be had are a mistake of the configuration; unwanted, nothing is imported."""
    monkeypatch.setitem(sys.modules, "reconciler.telemetry.traces", None)
    with traced(node(), "0x0", "1.0") as tracer, tracer.span("pass") as span:
        span.put(anything=1)
    telemetry = node().telemetry.model_copy(update={"traces": "http://127.0.0.1:4318/v1/traces"})
    wanted = node().model_copy(update={"telemetry": telemetry})
    with pytest.raises(ConfigError, match="needs OpenTelemetry"), traced(wanted, "0x0", "1.0"):
        pass


class Collector(ThreadingHTTPServer):
    """A small OTLP/HTTP receiver."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received: list[ExportTraceServiceRequest] = []


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        """Take what is sent."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Content-Type"] == "application/x-protobuf"
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quietly."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    """One that listens."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def test_a_real_pass_arrives_at_a_collector(tmp_path: Path, collector: Collector) -> None:
    """`reconcile` as a process of its own, with the exporter that users have; and without a collector, all the same."""
    made = Repository(tmp_path / "origin")
    made.put_trust(1, network.trust_text(expires=YEARS), (1, 2))
    made.put_model()
    made.put_snapshot(snapshot_text(expires=YEARS))
    made.commit()
    config = tmp_path / "node.yaml"
    with pytest.raises(SystemExit):
        cli.main(
            [
                *("init", "--network", "testnet", "--repository", made.url, "--yes", "--backend", "native"),
                *("--trust", digest_bytes(network.trust_text(expires=YEARS))),
                *("--state-dir", str(tmp_path / "state"), "--config", str(config)),
            ],
            prog_name="reconcile",
        )
    before = config.read_text()
    config.write_text(f"{before}telemetry: {{traces: 'http://127.0.0.1:{collector.server_port}/v1/traces'}}\n")
    command = [sys.executable, "-m", "reconciler.cli.main", "--config", str(config)]
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, "NoAssignment" in done.stdout) == (6, True), done.stderr
    resources = [resource for request in collector.received for resource in request.resource_spans]
    attributes = {item.key: item.value.string_value for item in resources[0].resource.attributes}
    assert (attributes["service.name"], attributes["reconcile.network"]) == ("reconcile", "testnet")
    names = {span.name for resource in resources for scope in resource.scope_spans for span in scope.spans}
    assert {"pass", "refresh", "observe", "plan"} <= names
    config.write_text(f"{before}telemetry: {{traces: 'http://127.0.0.1:9/v1/traces'}}\n")
    away = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert away.returncode == 6, away.stderr
    assert "opentelemetry" not in away.stderr

"""Traces of passes, by OpenTelemetry over OTLP/HTTP. The only importer of its SDK (`reconcile[otel]`).

A collector that is away costs a pass nothing: spans are sent by a thread of the SDK's, from a bounded queue, and what
does not fit is dropped.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode

from reconciler.logbook import clean
from schemas.errors import ReconcileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import opentelemetry.trace

    from reconciler.tracing import Span, Value

SEND_SECONDS: Final = 5
"""Within which a collector takes what it is sent; also what the end of a daemon waits for it, at most."""


class SdkSpan:
    """A span of the SDK's."""

    def __init__(self, span: opentelemetry.trace.Span) -> None:
        """Wrap it."""
        self._span = span

    def put(self, **attributes: Value) -> None:
        """Say more about it."""
        for name, value in attributes.items():
            self._span.set_attribute(name, clean(value) if isinstance(value, str) else value)

    def failed(self, reason: str, message: str) -> None:
        """It did not come to what it should have; `error.type` is the reason, as the semantic conventions have it."""
        self._span.set_attribute("error.type", reason)
        self._span.set_status(Status(StatusCode.ERROR, clean(message)))


class SdkTracer:
    """A `reconciler.tracing.Tracer` over a provider of the SDK's."""

    def __init__(self, provider: opentelemetry.trace.TracerProvider, version: str) -> None:
        """Nothing is traced yet.

        Args:
            provider: where spans go.
            version: of this agent.
        """
        self._tracer = provider.get_tracer("reconcile", version)

    @contextmanager
    def span(self, name: str, **attributes: Value) -> Iterator[Span]:
        """A span below the one that is under way in this thread."""
        with self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False) as inner:
            span = SdkSpan(inner)
            span.put(**attributes)
            try:
                yield span
            except ReconcileError as error:
                span.failed(error.reason, error.message)
                raise
            except BaseException as error:
                span.failed(type(error).__name__, str(error))
                raise


@contextmanager
def exporting(endpoint: str, *, network: str, node: str, version: str) -> Iterator[SdkTracer]:
    """Send what is traced to a collector, for the length of the `with`; what is left goes in the end.

    Args:
        endpoint: full address, `http://127.0.0.1:4318/v1/traces`. Headers come from `OTEL_EXPORTER_OTLP_HEADERS`.
        network: of the node.
        node: the node.
        version: of this agent.
    """
    # It complains at each span while a collector is away; that it is away is no trouble of the node's.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    resource = Resource.create(
        {
            "service.name": "reconcile",
            "service.version": version,
            "service.instance.id": node,
            "reconcile.network": network,
        }
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=SEND_SECONDS)))
    try:
        yield SdkTracer(provider, version)
    finally:
        provider.shutdown()

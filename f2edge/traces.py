"""OpenTelemetry traces: a span for each call, a child of the caller's (``traceparent``), with the time that it waited for the engine.

Needs the extra ``traces``.  Where spans go, and how many, is set by OpenTelemetry's own variables, such as
``OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4318`` and ``OTEL_TRACES_SAMPLER``.  No prompt, question, picture or token is in a span.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from f2edge import __version__
from f2edge.errors import InputError
from f2edge.v1 import face_pb2 as pb

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from f2edge.server.rpc import Call, CallMeter

SERVICE: str = pb.DESCRIPTOR.services_by_name["FaceService"].full_name


class TracedMeter:
    """Meter that also makes a span of every call.

    Args:
        meter: hears of calls too.
        exporter: takes finished spans, on a thread; None for OTLP over HTTP.

    Raises:
        InputError: OpenTelemetry is not installed.
    """

    def __init__(self, meter: CallMeter, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise InputError("--traces needs OpenTelemetry; install it with `pip install 'f2edge[traces]'`") from error
        self._meter = meter
        self._provider = TracerProvider(resource=Resource.create({"service.name": "f2edge", "service.version": __version__}))
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("f2edge", __version__)

    def call_started(self, method: str) -> None:
        self._meter.call_started(method)

    def call_ended(self, call: Call, code: str, now: float) -> None:
        """Export the span of a call that has ended."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._meter.call_ended(call, code, now)
        offset_ns = time.time_ns() - int(1e9 * now)
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": SERVICE,
            "rpc.method": call.method,
            "f2edge.status": code,
            "f2edge.request_id": call.request_id,
        }
        span = self._tracer.start_span(
            f"{SERVICE}/{call.method}",
            context=TraceContextTextMapPropagator().extract({"traceparent": call.traceparent} if call.traceparent else {}),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=offset_ns + int(1e9 * call.started),
        )
        if call.first_sent is not None:
            span.add_event("first message", timestamp=offset_ns + int(1e9 * call.first_sent))
        if code != "OK":
            span.set_status(Status(StatusCode.ERROR, code))
        span.end(offset_ns + int(1e9 * now))

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()

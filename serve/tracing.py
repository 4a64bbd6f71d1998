"""OpenTelemetry traces of a request: a span of the gateway, below it those of the engine.

Off, and not even imported, unless OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT says where to
send them; OpenTelemetry's own variables decide the rest (sampling, headers, the service's name). Attributes follow
its conventions for generative AI. No prompt and no answer is ever part of a span.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from everlearn.errors import ConfigError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PARENT = "traceparent"


def traces_endpoint() -> str | None:
    """The full address that spans are posted to, if one is set."""
    whole, base = (os.environ.get(name) for name in ENDPOINTS)
    return whole or (f"{base.rstrip('/')}/v1/traces" if base else None)


def open_tracer(part: str) -> "Tracer | None":
    """The tracer of a process that is the `part` ("gateway", "engine") of everlearn; None while tracing is off.

    Raises ConfigError where OpenTelemetry is not installed.
    """
    if traces_endpoint() is None:
        return None
    try:
        return Tracer(part)
    except ImportError as missing:
        raise ConfigError(
            f"{' or '.join(ENDPOINTS)} is set, and {missing.name} is not installed: "
            "pip install 'everlearn[tracing]'"
        ) from None


class Tracer:
    """Makes spans and sends them in batches from a thread of its own. What cannot be sent is dropped."""

    def __init__(self, part: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": f"everlearn-{part}"}
        provider = TracerProvider(resource=Resource.create(named))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = provider.get_tracer("everlearn")
        self._propagator = TraceContextTextMapPropagator()

    def serve(self, name: str, parent: str | None, start_ns: int | None = None) -> "Span":
        """A span for a request that came with the header `traceparent`, or with none."""
        from opentelemetry.trace import SpanKind

        context = self._propagator.extract({PARENT: parent} if parent else {})
        span = self._tracer.start_span(name, context, kind=SpanKind.SERVER, start_time=start_ns)
        return Span(self, span)

    def within(self, span: Any, name: str, start_ns: int, end_ns: int) -> None:
        """A part of `span` that is over."""
        from opentelemetry.trace import set_span_in_context

        self._tracer.start_span(name, set_span_in_context(span), start_time=start_ns).end(end_ns)

    def header_of(self, span: Any) -> str:
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, set_span_in_context(span))
        return carrier[PARENT]


class Span:
    """One that runs. Times are nanoseconds since 1970."""

    def __init__(self, tracer: Tracer, span: Any) -> None:
        self._tracer = tracer
        self._span = span

    def headers(self) -> dict[str, str]:
        """What makes another process's spans children of this one."""
        return {PARENT: self._tracer.header_of(self._span)}

    def part(self, name: str, start_ns: int, end_ns: int) -> None:
        """A part of it that is over."""
        self._tracer.within(self._span, name, start_ns, end_ns)

    def rename(self, name: str) -> None:
        """Its name, once that is known: it begins with what it began with."""
        self._span.update_name(f"{self._span.name} {name}")

    def event(self, name: str, seconds_ago: float) -> None:
        """Something that happened in it."""
        self._span.add_event(name, timestamp=time.time_ns() - int(seconds_ago * 1e9))

    def note(self, attributes: Mapping[str, Any]) -> None:
        """What is known about it; attributes that are None are left out."""
        self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})

    def end(self, attributes: Mapping[str, Any], error: str | None = None) -> None:
        """With the last that is known about it."""
        from opentelemetry.trace import Status, StatusCode

        self.note(attributes)
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end()

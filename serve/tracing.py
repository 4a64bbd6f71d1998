"""OpenTelemetry traces of a request: a span of the gateway, below it those of the engine.

Off, and not even imported, unless OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT says where to
send them; OpenTelemetry's own variables decide the rest (sampling, headers, the service's name). Attributes follow
its conventions for generative AI. No prompt and no answer is ever part of a span.
"""

import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from everlearn.errors import ConfigError

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PARENT = b"traceparent"


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

    def serve(self, name: str, headers: Iterable[tuple[bytes, bytes]]) -> "Span":
        """A span for a request with these ASGI headers: below its client's, where `traceparent` names one."""
        from opentelemetry.trace import SpanKind

        sent = {key.decode(): value.decode("latin-1") for key, value in headers if key == PARENT}
        span = self._tracer.start_span(name, self._propagator.extract(sent), kind=SpanKind.SERVER)
        return Span(self._tracer, self._propagator, span)


class Span:
    """One that runs. Times are nanoseconds since 1970."""

    def __init__(self, tracer: Any, propagator: Any, span: Any) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer = tracer
        self._propagator = propagator
        self._span = span
        self._context = set_span_in_context(span)

    def headers(self) -> dict[str, str]:
        """What makes another process's spans children of this one."""
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._context)
        return carrier

    def part(self, name: str, start_ns: int, end_ns: int) -> None:
        """A part of it that is over."""
        self._tracer.start_span(name, self._context, start_time=start_ns).end(end_ns)

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

"""A request's trace: from the client's header through the gateway into the engine, at a real OTLP receiver."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.e2e.conftest import READY_S, copy_home
from tests.support.serve.supervised import REAL, eventually, supervised

pytestmark = pytest.mark.slow

WORD = "zanzibar"
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Receiver:
    """Takes spans as a collector does."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                receiver.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def spans(self) -> dict[str, Any]:
        """By name, with the service as `service`."""
        found: dict[str, Any] = {}
        for body in list(self.bodies):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                [service] = [
                    a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
                ]
                for scope in resource.scope_spans:
                    found |= {f"{service}: {span.name}": span for span in scope.spans}
        return found


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.http.shutdown()


def test_a_trace_leads_from_the_client_into_the_engine(
    real_home: Path, tmp_path: Path, receiver: Receiver
) -> None:
    settings = copy_home(real_home, tmp_path / "home")
    environment = {
        "EVERLEARN_STORE_URL": str(settings.store_url),
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.http.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with supervised(settings.home, "smollm2", command=REAL, **environment) as server:  # type: ignore[arg-type]
        server.ready(READY_S)
        body = {"model": "smollm2", "messages": [{"role": "user", "content": WORD}], "max_tokens": 8}
        headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
        answer = httpx.post(
            f"{server.url}/v1/chat/completions", json=body | {"stream": True}, headers=headers, timeout=60
        )
        assert answer.status_code == 200
        names = ["gateway: POST /v1/chat/completions", "engine: engine /v1/chat/completions"]
        parts = ["engine: prefill", "engine: decode"]

        def complete() -> dict[str, Any] | None:
            spans = {
                name: span for name, span in receiver.spans().items() if span.trace_id == bytes.fromhex(TRACE)
            }
            return spans if {f"everlearn-{name}" for name in names + parts} <= spans.keys() else None

        spans = eventually(complete)
        assert spans is not None
        gateway, engine = (spans[f"everlearn-{name}"] for name in names)
        assert gateway.parent_span_id.hex() == CALLER
        assert engine.parent_span_id == gateway.span_id
        told = {each.key: each.value for each in gateway.attributes}
        assert told["http.response.status_code"].int_value == 200
        assert told["gen_ai.request.model"].string_value == "smollm2"
        assert told["gen_ai.usage.output_tokens"].int_value == 8
        assert told["everlearn.version"].string_value.startswith("smollm2@")
        assert [event.name for event in gateway.events] == ["first token"]
        prefill, decode = (spans[f"everlearn-{part}"] for part in parts)
        assert prefill.parent_span_id == decode.parent_span_id == engine.span_id
        assert engine.start_time_unix_nano < prefill.start_time_unix_nano < prefill.end_time_unix_nano
        assert prefill.end_time_unix_nano == decode.start_time_unix_nano < decode.end_time_unix_nano
        count = len(receiver.bodies)
        httpx.post(f"{server.url}/v1/chat/completions", json={"model": "gone", "messages": []})
        eventually(lambda: len(receiver.bodies) > count)
        assert server.end() == 0
    assert not any(WORD.encode() in body for body in receiver.bodies), "spans hold no prompt"

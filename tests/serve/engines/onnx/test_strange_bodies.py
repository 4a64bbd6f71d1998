"""Strange but valid JSON, thrown at the engine's application in this process: never a server error."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from everlearn.settings import OnnxSettings, Settings
from serve.engines.onnx.generate import GenerateBackend
from serve.engines.onnx.http import Application
from serve.engines.onnx.sizing import Sizes
from serve.engines.onnx.tokens import token_routes
from tests.support.serve.strange import ASKED, BODIES, called, tools

Post = Callable[[str, bytes], httpx.Response]


@pytest.fixture(scope="module")
def post(int4_bundle: Path) -> Iterator[Post]:
    """Asks the engine's application, which runs in a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    sizes = Sizes.of(Settings(onnx=OnnxSettings(slots=4, kv_tokens=4096, context=2048)))
    backend = GenerateBackend(int4_bundle, "smollm2", sizes, loop)
    backend.routes |= token_routes(backend.reader, backend.readers)
    app = Application("smollm2", backend)

    async def ask(path: str, body: bytes) -> httpx.Response:
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            return await client.post(path, content=body, timeout=60)

    yield lambda path, body: asyncio.run_coroutine_threadsafe(ask(path, body), loop).result(60)
    backend.scheduler.stop()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@given(
    body=BODIES,
    path=st.sampled_from(["/v1/chat/completions", "/v1/chat/completions", "/v1/completions", "/tokenize"]),
    stream=st.booleans(),
)
@example(ASKED | {"messages": called('{"a": "\\ud83d"}')}, "/v1/chat/completions", True)
@example(ASKED | {"messages": called("[" * 3000 + "]" * 3000)}, "/v1/chat/completions", False)
@example(ASKED | {"messages": called("[" * 500 + "]" * 500)}, "/tokenize", False)
@example(ASKED | {"tools": tools({"maximum": 2**64}, None)}, "/v1/chat/completions", False)
@example(
    ASKED | {"tools": tools({"properties": {"a": {"enum": [10**30]}}}, True)}, "/v1/chat/completions", False
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
def test_strange_json_is_answered_or_refused(post: Post, body: Any, path: str, stream: bool) -> None:
    if isinstance(body, dict) and path == "/tokenize":
        body = {name: body[name] for name in body if name not in ("max_tokens", "stream")}
    elif isinstance(body, dict) and stream:
        body = {"stream": True, **body}
    if isinstance(body, dict) and path == "/v1/completions":
        body = {"prompt": "Hi"} | {name: body[name] for name in body if name != "messages"}
    answer = post(path, json.dumps(body).encode())
    assert answer.status_code < 500, answer.text
    assert '"server_error"' not in answer.text
    if answer.status_code == 400:
        assert answer.json()["error"]["message"]

"""HTTP itself: old clients, probes that ask with HEAD, clients that wait to be told to go on, slow ones."""

import json
import re
import socket
from typing import Any

import pytest

from tests.serve.gateway.conftest import RunningGateway, chat_body, sse


def whole(gateway: RunningGateway, request: bytes) -> tuple[str, bytes]:
    """Head and body of an answer that ends with its connection."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as connection:
        connection.sendall(request)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode().lower(), body


def old_post(body: dict[str, Any], headers: str = "") -> bytes:
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.0\r\nhost: localhost\r\ncontent-type: application/json\r\n{headers}"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


@pytest.mark.parametrize("headers", ["", "connection: keep-alive\r\n"])
def test_a_stream_to_http_1_0_ends_with_the_connection_and_has_no_chunks(
    gateway: RunningGateway, headers: str
) -> None:
    head, body = whole(gateway, old_post(chat_body(stream=True), headers))
    assert "transfer-encoding" not in head
    assert "connection: close" in head
    assert "content-length" not in head
    events = sse(body.decode())
    assert body.startswith(b"data: ")
    assert events[-1] == "[DONE]"
    assert "".join(event["choices"][0]["delta"]["content"] for event in events[:-1]) == "Paris!"


def test_a_whole_answer_to_http_1_0_has_a_length(gateway: RunningGateway) -> None:
    head, body = whole(gateway, old_post(chat_body()))
    assert f"content-length: {len(body)}" in head
    assert json.loads(body)["choices"]


def test_head_is_answered_as_get_is_without_the_body(gateway: RunningGateway) -> None:
    """Of every route, so that the routes to come have it, too."""
    document = gateway.client.get("/openapi.json").json()
    documented = [path for path, operations in document["paths"].items() if "get" in operations]
    assert not any("head" in operations for operations in document["paths"].values())
    pages = ["/", "/console", "/playground.js", "/console.css", "/openapi.json", "/console/state"]
    for path in [re.sub(r"\{.*\}", "m", path) for path in documented] + pages:
        got, head = gateway.client.get(path), gateway.client.head(path)
        assert head.status_code == got.status_code, path
        assert head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]
        if path not in ("/console/state", "/metrics"):  # what counts requests grows with each
            assert head.headers["content-length"] == str(len(got.content)), path
    assert gateway.client.head("/v1/chat/completions").status_code == 405
    assert gateway.client.head("/nope").status_code == 404


def test_a_refusal_before_the_body_that_waits_for_100_closes_the_connection(gateway: RunningGateway) -> None:
    """The client may or may not send the body then, and what comes next could be read as it."""
    head, body = whole(
        gateway,
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: text/plain\r\n"
        b"expect: 100-continue\r\ncontent-length: 50\r\n\r\n",
    )
    assert head.startswith("http/1.1 415")
    assert "connection: close" in head
    assert b"content-type" in body

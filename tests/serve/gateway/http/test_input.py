"""What clients may send over HTTP, and how anything else is refused."""

import json
import socket
import time
from contextlib import suppress
from typing import Any

import pytest

from tests.serve.gateway.conftest import RunningGateway, chat_body, raw_request
from tests.support.serve.scripted_engine import ScriptedEngine

MB = 1024 * 1024


def assert_error(response: Any, status: int, param: str | None = None) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["param"] == param
    assert response.headers["x-request-id"]


def post(gateway: RunningGateway, body: Any, **headers: str) -> Any:
    headers = {"content-type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return gateway.client.post("/v1/chat/completions", content=body, headers=headers)


@pytest.mark.parametrize(
    "body", [b"{", b'{"a":NaN}', b'{"a":1,"a":2}', b"\xef\xbb\xbf\xef\xbb\xbf{}", b'{"a":"\\ud800"}', b"\xff"]
)
def test_broken_json_is_400(gateway: RunningGateway, engine: ScriptedEngine, body: bytes) -> None:
    assert_error(post(gateway, body), 400)
    assert engine.received == []


def test_a_byte_order_mark_before_the_body_is_no_part_of_it(gateway: RunningGateway) -> None:
    assert post(gateway, b"\xef\xbb\xbf" + json.dumps(chat_body()).encode()).status_code == 200


@pytest.mark.parametrize(
    "name", ["prompt_embeds", "chat_template", "lora_request", "api_base", "extra_headers"]
)
def test_fields_outside_the_list_never_reach_an_engine(
    gateway: RunningGateway, engine: ScriptedEngine, name: str
) -> None:
    assert_error(gateway.chat(**{name: "http://attacker.example"}), 400, name)
    assert engine.received == []


def test_n_is_capped_by_the_settings(gateway: RunningGateway) -> None:
    assert_error(gateway.chat(n=9), 400, "n")
    assert gateway.chat(n=8).status_code == 200


def test_a_body_over_the_limit_is_413_and_the_connection_lives(gateway: RunningGateway) -> None:
    body = json.dumps(chat_body(text="x" * 10 * MB)).encode()
    assert_error(post(gateway, body), 413)
    assert gateway.chat().status_code == 200


def test_a_chunked_body_over_the_limit_is_413_before_it_is_all_read(gateway: RunningGateway) -> None:
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n"
    )
    for _ in range(9):
        connection.sendall(b"%x\r\n%s\r\n" % (MB, b" " * MB))
    assert connection.recv(100).startswith(b"HTTP/1.1 413")
    connection.close()


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate"])
def test_compressed_bodies_are_refused(gateway: RunningGateway, encoding: str) -> None:
    assert_error(post(gateway, b"x", content_encoding=encoding), 415, "content-encoding")


def test_only_json_is_read_so_that_a_web_page_cannot_post_unasked(gateway: RunningGateway) -> None:
    assert_error(post(gateway, b"{}", content_type="text/plain"), 415, "content-type")


@pytest.mark.parametrize(
    "model", ["unknown", "../../etc/passwd", "http://169.254.169.254/", "m@99", "m@../x", "M"]
)
def test_an_unknown_model_is_404(gateway: RunningGateway, model: str) -> None:
    assert_error(gateway.chat(model), 404, "model")


def test_a_model_name_of_ten_kilobytes_is_400(gateway: RunningGateway) -> None:
    assert_error(gateway.chat("x" * 10_000), 400, "model")


def test_a_model_asked_for_what_it_cannot_do_is_400(gateway: RunningGateway) -> None:
    assert_error(gateway.chat("e"), 400, "model")
    assert_error(gateway.client.post("/v1/embeddings", json={"model": "m", "input": "x"}), 400, "model")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nope", 404), ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models", 405), ("GET", "/v1/../x", 404),
     ("POST", "/invocations", 404), ("GET", "/redoc", 404), ("GET", "/v1/models/", 404), ("GET", "/v1/models/x%00", 404)],
)  # fmt: skip
def test_other_routes_are_errors_in_the_same_form(
    gateway: RunningGateway, method: str, path: str, status: int
) -> None:
    response = gateway.client.request(method, path)
    assert response.status_code == status
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", b"431"),
        (b"GET /health HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 50_000 + b"\r\n", b"431"),
        (b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n", b"400"),
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n", b"400"),
    ],
    ids=["long header", "many headers", "long URL", "smuggling", "negative length", "no HTTP", "raw bytes"],
)  # fmt: skip
def test_a_bad_head_is_refused_in_the_same_form(gateway: RunningGateway, head: bytes, status: bytes) -> None:
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
    answer = b""
    with suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(head)
    with suppress(ConnectionResetError):
        while data := connection.recv(4096):
            answer += data
    connection.close()
    if answer or status != b"431":  # the answer to an overlong head may be lost with the connection
        assert answer.split(b"\r\n")[0].split()[1] == status
        assert b'{"error"' in answer
    assert gateway.client.get("/health").status_code == 200


def test_a_sane_request_id_is_kept_and_handed_on(gateway: RunningGateway, engine: ScriptedEngine) -> None:
    response = post(gateway, json.dumps(chat_body()).encode(), x_request_id="abc-1.2_3")
    assert response.headers["x-request-id"] == "abc-1.2_3"
    assert engine.received[-1].headers["x-request-id"] == "abc-1.2_3"


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, '"; drop', "ä"])
def test_any_other_request_id_is_replaced(gateway: RunningGateway, sent: str) -> None:
    response = gateway.client.get("/health", headers={"x-request-id": sent.encode()})
    assert response.headers["x-request-id"].startswith("req_")


def test_nothing_of_the_clients_request_but_the_checked_body_reaches_the_engine(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    headers = {
        "x-forwarded-for": "1.2.3.4",
        "cookie": "a=b",
        "authorization": "Bearer secret",
        "x-secret": "1",
    }
    gateway.client.post("/v1/chat/completions", json=chat_body(user="u"), headers=headers)
    received = engine.received[-1]
    assert not set(headers) & set(received.headers)
    assert received.body == chat_body()


def test_an_eight_megabyte_prompt_does_not_hold_up_others(gateway: RunningGateway) -> None:
    body = json.dumps(chat_body(text="word " * 1_600_000)).encode()
    connection = raw_request(gateway.port, body)
    began = time.monotonic()
    assert gateway.client.get("/health").status_code == 200
    assert time.monotonic() - began < 5
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    connection.close()


def test_the_page_is_served_with_a_strict_policy(gateway: RunningGateway) -> None:
    page = gateway.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    for asset, kind in (("playground.css", "text/css"), ("playground.js", "text/javascript")):
        assert gateway.client.get(f"/{asset}").headers["content-type"].startswith(kind)

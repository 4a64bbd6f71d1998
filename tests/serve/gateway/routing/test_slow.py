"""Clients that take their time: a body has a time to arrive in, whatever it is for, and nobody else waits for it."""

import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import uvicorn
from starlette.responses import PlainTextResponse

import serve.bounded_http
from serve.bounded_http import BoundedHttp
from tests.serve.gateway.conftest import RunningGateway

PATIENCE_S = 1.0
JSON = b"content-type: application/json\r\n"
FORM = b"content-type: multipart/form-data; boundary=b\r\n"
PART = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
END = b'\r\n--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'
ROUTES = {
    "/v1/chat/completions": JSON,
    "/v1/messages": JSON,
    "/v1/batches": JSON,
    "/console/acts": JSON,
    "/v1/files": FORM,
}


@pytest.fixture(scope="module")
def impatient(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    gateway = start_gateway(body_timeout_s=PATIENCE_S)
    gateway.add_engine("m")
    return gateway


def head(path: str, kind: bytes, size: str = "content-length: 4000") -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: localhost\r\n%s%s\r\n\r\n" % (path.encode(), kind, size.encode())


def trickle(port: int, requests: list[bytes], pieces: list[bytes], until_s: float) -> list[bytes]:
    """Send each request on a connection of its own, then its piece again and again; what came until all were closed."""
    connections = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in requests]
    answers = {connection: b"" for connection in connections}
    waiting = selectors.DefaultSelector()
    for connection, request in zip(connections, requests, strict=True):
        connection.sendall(request)
        waiting.register(connection, selectors.EVENT_READ)
    deadline = time.monotonic() + until_s
    while waiting.get_map():
        assert time.monotonic() < deadline, "still open"
        for key, _ in waiting.select(0.1):
            connection: socket.socket = key.fileobj  # type: ignore[assignment]
            data = b""
            with suppress(ConnectionResetError):
                data = connection.recv(65536)
            answers[connection] += data
            if not data:
                waiting.unregister(connection)
                connection.close()
        for connection, piece in zip(connections, pieces, strict=True):
            if connection.fileno() >= 0:
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(piece)
    return list(answers.values())


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
def test_a_body_that_trickles_is_408_on_every_route_and_leaves_nothing(
    impatient: RunningGateway, chunked: bool
) -> None:
    size = "transfer-encoding: chunked" if chunked else "content-length: 4000"

    def framed(data: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(data), data) if chunked else data

    piece = framed(b"-")
    requests = [
        head(path, kind, size) + framed(PART if kind is FORM else b"{") for path, kind in ROUTES.items()
    ]
    for path, answer in zip(
        ROUTES, trickle(impatient.port, requests, [piece] * len(requests), 10), strict=True
    ):
        assert answer.startswith(b"HTTP/1.1 408"), (path, answer)
        assert b"connection: close" in answer
        assert b"64 KiB/s" in answer
    assert list(Path(impatient.settings.home, "files").iterdir()) == []
    assert impatient.metric("everlearn_requests_in_flight") == 0


def test_a_long_body_may_take_its_time_while_it_keeps_coming(impatient: RunningGateway) -> None:
    content = PART + b'{"a": 1}\n' * 45_000 + END
    step = len(content) // 8 + 1
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=10) as connection:
        connection.sendall(head("/v1/files", FORM, f"content-length: {len(content)}"))
        began = time.monotonic()
        for at in range(0, len(content), step):
            connection.sendall(content[at : at + step])
            time.sleep(0.2)
        assert time.monotonic() - began > 1.5 * PATIENCE_S
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_many_slow_bodies_hold_up_nobody(impatient: RunningGateway) -> None:
    """Those who wait are many, and whoever sends at once is served at once."""
    requests = [head("/v1/files", FORM) + PART, head("/v1/chat/completions", JSON) + b"{"] * 50
    answers: list[bytes] = []
    slow = threading.Thread(
        target=lambda: answers.extend(trickle(impatient.port, requests, [b"-"] * 100, 20))
    )
    slow.start()
    served = 0
    while slow.is_alive():
        assert impatient.chat().status_code == 200
        served += 1
    slow.join()
    assert served > 20
    assert all(answer.startswith(b"HTTP/1.1 408") for answer in answers)


@contextmanager
def plain_server(tmp_path: Path) -> Iterator[socket.socket]:
    """Connections as the gateway has them, before an application that reads no body."""
    config = uvicorn.Config(
        PlainTextResponse("no"), uds=str(tmp_path / "s"), http=BoundedHttp, ws="none", lifespan="off",
        log_level="critical",
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(str(tmp_path / "s"))
        yield connection
    server.should_exit = True
    thread.join()


def test_the_rest_of_a_body_that_nobody_reads_has_a_time_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.bounded_http, "DISCARD_S", 0.5)
    with plain_server(tmp_path) as connection:
        connection.sendall(head("/", b""))
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(100):
                connection.sendall(b"-")
                time.sleep(0.05)


def test_a_body_that_was_not_read_and_came_in_time_costs_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.bounded_http, "DISCARD_S", 0.3)
    with plain_server(tmp_path) as connection:
        for _ in range(2):
            connection.sendall(head("/", b""))
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            connection.sendall(b"-" * 4000)
            time.sleep(0.4)


def test_a_head_that_never_ends_is_408(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve.bounded_http, "HEADER_TIMEOUT_S", 0.5)
    with plain_server(tmp_path) as connection:
        answer = b""
        with suppress(BrokenPipeError, ConnectionResetError):
            for byte in b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 20:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        with suppress(ConnectionResetError):
            answer = connection.recv(1000)
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
        assert answer.startswith(b"HTTP/1.1 408")

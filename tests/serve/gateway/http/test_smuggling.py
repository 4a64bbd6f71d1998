"""One body is one request: nothing inside it is ever answered as a request of its own, whatever the headers say."""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import pytest

from tests.serve.gateway.conftest import RunningGateway, chat_body, wait_until
from tests.support.serve.scripted_engine import Connection, ScriptedEngine

INNER = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"
WEBSOCKET = (
    b"connection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
TWO_LINES = b"connection: keep-alive\r\nconnection: upgrade\r\nupgrade: h2c\r\nupgrade: websocket\r\n"
UPGRADES = {"h2c": H2C, "websocket": WEBSOCKET, "on several lines": TWO_LINES}
QUIET_S = 0.1

Cut = Callable[[bytes, bytes], Iterable[bytes]]
CUTS: dict[str, Cut] = {
    "in one packet": lambda head, body: [head + body],
    "the body in a second packet": lambda head, body: [head, body],
    "cut inside the head": lambda head, body: [head[:40], head[40:-2], head[-2:] + body[:5], body[5:]],
    "byte by byte": lambda head, body: [bytes([byte]) for byte in head + body],
}


def post(headers: bytes, length: int, path: bytes = b"/v1/chat/completions") -> bytes:
    return (
        b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n%scontent-length: %d\r\n\r\n"
        % (path, headers, length)
    )


def talk(gateway: RunningGateway, packets: Iterable[bytes], answers: int = 1) -> bytes:
    """All that comes back on one connection until it closes, or is quiet for a while after so many answers."""
    answer = b""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for packet in packets:
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(packet)
            time.sleep(0.0005 if len(packet) == 1 else 0.02)
        with suppress(TimeoutError, ConnectionResetError):
            while data := connection.recv(65536):
                answer += data
                connection.settimeout(10 if len(statuses(answer)) < answers else QUIET_S)
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)
def test_an_upgrade_is_ignored_and_the_body_read(
    gateway: RunningGateway, engine: ScriptedEngine, upgrade: bytes, cut: Cut
) -> None:
    body = json.dumps(chat_body(text="GET /health HTTP/1.1")).encode()
    assert statuses(talk(gateway, cut(post(upgrade, len(body)), body))) == [200]
    assert [request.body for request in engine.received] == [chat_body(text="GET /health HTTP/1.1")]


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)
def test_a_body_that_looks_like_a_request_is_one_bad_body(
    gateway: RunningGateway, upgrade: bytes, cut: Cut
) -> None:
    answer = talk(gateway, cut(post(upgrade, len(INNER)), INNER))
    assert statuses(answer) == [400]
    assert b'{"status"' not in answer


def test_an_upgrade_with_a_chunked_body_is_read_to_its_end(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    body = json.dumps(chat_body()).encode()
    head = post(H2C, 0).replace(b"content-length: 0", b"transfer-encoding: chunked")
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:])]
    assert statuses(talk(gateway, [head, *chunks, b"0\r\n\r\n"])) == [200]
    assert len(engine.received) == 1
    smuggled = b"%x\r\n%s\r\n0\r\n\r\n" % (len(INNER), INNER)
    assert statuses(talk(gateway, [head, smuggled])) == [400]


def test_an_upgrade_that_expects_100_is_told_to_go_on(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    body = json.dumps(chat_body()).encode()
    head = post(H2C + b"expect: 100-continue\r\n", len(body))
    assert statuses(talk(gateway, [head, body], 2)) == [100, 200]


def test_an_upgrade_without_a_body_is_answered_and_the_connection_goes_on(gateway: RunningGateway) -> None:
    plain = b"GET /ready HTTP/1.1\r\nhost: localhost\r\n\r\n"
    upgraded = plain.replace(b"\r\n\r\n", b"\r\n" + H2C + b"\r\n")
    assert statuses(talk(gateway, [upgraded, plain], 2)) == [200, 200]
    assert statuses(talk(gateway, [upgraded + upgraded + plain], 3)) == [200, 200, 200]


def test_several_upgrades_on_one_connection_stay_apart(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    body = json.dumps(chat_body()).encode()
    request = post(H2C, len(body)) + body
    assert statuses(talk(gateway, [request + request + request], 3)) == [200, 200, 200]
    assert len(engine.received) == 3


@pytest.mark.parametrize("target", [b"example.org:443", b"localhost:8000", b"/health"])
def test_connect_is_refused_and_nothing_after_it_is_read(gateway: RunningGateway, target: bytes) -> None:
    head = b"CONNECT %s HTTP/1.1\r\nhost: localhost\r\n\r\n" % target
    for packets in ([head + INNER], [head, INNER]):
        answer = talk(gateway, packets)
        assert statuses(answer) == [405]
        assert b"connection: close" in answer


BROKEN = {
    "length and chunks": b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"content-length: 5\r\ncontent-length: 50\r\n\r\nhello",
    "a list of lengths": b"content-length: 5, 50\r\n\r\nhello",
    "a signed length": b"content-length: +5\r\n\r\nhello",
    "a length in hexadecimal": b"content-length: 0x5\r\n\r\nhello",
    "a length beyond 64 bits": b"content-length: 18446744073709551621\r\n\r\nhello",
    "a space before the colon": b"content-length : 5\r\n\r\nhello",
    "chunked twice over": b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "almost chunked": b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked with a vertical tab": b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a chunk size that is no number": b"transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "a signed chunk size": b"transfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
    "a chunk size with a prefix": b"transfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk size beyond 64 bits": b"transfer-encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a chunk longer than it says": b"transfer-encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
    "a chunk that ends in a bare LF": b"transfer-encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
    "a chunk size that ends in a bare LF": b"transfer-encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
    "a header on two lines": b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a header that ends in a bare LF": b"x: y\ncontent-length: 5\r\n\r\nhello",
    "a header that ends in a bare CR": b"x: y\rcontent-length: 5\r\n\r\nhello",
    "NUL in a header": b"x: a\x00b\r\ncontent-length: 5\r\n\r\nhello",
    "a head that ends in a bare LF": b"content-length: 5\r\n\nhello",
}


@pytest.mark.parametrize("rest", BROKEN.values(), ids=BROKEN)
def test_a_message_whose_end_could_be_read_in_two_ways_ends_the_connection(
    gateway: RunningGateway, engine: ScriptedEngine, rest: bytes
) -> None:
    """Refused, whether the whole comes at once or the smuggled request by itself; with an upgrade, too."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    for packets in ([head + rest + INNER], [head + rest, INNER], [head + H2C + rest, INNER]):
        answer = talk(gateway, packets)
        assert statuses(answer) == [400], answer
        assert b'{"status"' not in answer
    assert engine.received == []


@pytest.mark.parametrize("ends", [b"connection: close\r\n", b""], ids=["close", "HTTP/1.0"])
def test_what_comes_after_the_last_request_is_not_read(gateway: RunningGateway, ends: bytes) -> None:
    version = b"1.1" if ends else b"1.0"
    request = b"GET /ready HTTP/%s\r\nhost: localhost\r\n%s\r\n" % (version, ends)
    for packets in ([request + INNER], [request, INNER]):
        assert statuses(talk(gateway, packets)) == [200]


def test_garbage_behind_a_running_answer_is_not_answered_into_it(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    """The refusal of a second request must not stand in the middle of the first one's answer."""

    async def slowly(connection: Connection) -> None:
        await connection.head()
        for _ in range(100):
            await connection.delta("word ")
        await asyncio.sleep(60)

    engine.script = slowly
    body = json.dumps(chat_body(stream=True)).encode()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as connection:
        connection.sendall(post(b"", len(body)) + body)
        answer = connection.recv(200)
        connection.sendall(b"NONSENSE\r\n\r\n")
        with suppress(ConnectionResetError):
            while data := connection.recv(65536):
                answer += data
    assert statuses(answer) == [200]
    assert b"bad_request" not in answer
    assert engine.aborted_within(2)
    wait_until(lambda: gateway.metric("everlearn_requests_in_flight") == 0, "its place is free again")

"""Streams between a client and an engine that may break at any point."""

import asyncio
import time

import pytest
from openai import APIError, OpenAI

from tests.serve.gateway.conftest import RunningGateway, raw_request, resident_mb, sse, wait_until
from tests.support.serve.scripted_engine import USAGE, Connection, ScriptedEngine, well


async def hang(connection: Connection) -> None:
    await asyncio.sleep(3600)


async def begin(connection: Connection, words: int = 2) -> None:
    await connection.head()
    for _ in range(words):
        await connection.delta("word ")


def assert_broken(text: str, words: int = 2) -> dict:
    """The words that came, then one error event, and no [DONE]."""
    events = sse(text)
    assert [e["choices"][0]["delta"]["content"] for e in events[:-1]] == ["word "] * words
    assert set(events[-1]) == {"error"}
    assert events[-1]["error"]["message"]
    return events[-1]["error"]


def assert_at_rest(gateway: RunningGateway) -> None:
    for name in ("everlearn_requests_in_flight", "everlearn_requests_waiting"):
        wait_until(lambda name=name: gateway.metric(name) == 0, f"{name} returns to 0")


def test_bytes_pass_through_and_usage_is_shown_only_when_asked(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    plain = gateway.chat(stream=True)
    assert plain.headers["content-type"].startswith("text/event-stream")
    assert plain.headers["x-everlearn-version"] == "m@1"
    assert plain.text.endswith("data: [DONE]\n\n")
    assert "usage" not in plain.text
    assert engine.received[-1].body["stream_options"] == {"include_usage": True}
    asked = sse(gateway.chat(stream=True, stream_options={"include_usage": True}).text)
    assert asked[-2]["usage"] == USAGE
    assert asked[:-2] == sse(plain.text)[:-1]


def test_a_complete_stream_is_no_hang_up_to_the_engine_even_if_its_end_lags(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    async def lag(connection: Connection) -> None:
        await connection.head()
        await connection.delta("word ")
        await connection.chunk(b"data: [DONE]\n\n")
        await asyncio.sleep(0.2)
        await connection.raw(b"0\r\n\r\n")

    engine.script = lag
    for _ in range(2):
        assert sse(gateway.chat(stream=True).text)[-1] == "[DONE]"
        assert not engine.aborted_within(0.3)


def test_an_engine_that_dies_mid_stream_ends_it_with_one_error_event(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    async def die(connection: Connection) -> None:
        await begin(connection)
        connection.reset()

    engine.script = die
    began = time.monotonic()
    assert assert_broken(gateway.chat(stream=True).text)["code"] == "backend_error"
    assert time.monotonic() - began < 1
    assert len(engine.received) == 1
    assert_at_rest(gateway)
    engine.script = well
    assert gateway.chat().status_code == 200


def test_the_openai_client_raises_when_a_stream_breaks(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    async def die(connection: Connection) -> None:
        await begin(connection)
        connection.reset()

    engine.script = die
    client = OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(APIError):
        list(
            client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}], stream=True
            )
        )


def test_a_stream_that_ends_without_done_is_broken(gateway: RunningGateway, engine: ScriptedEngine) -> None:
    async def stop(connection: Connection) -> None:
        await begin(connection)
        await connection.raw(b"0\r\n\r\n")

    engine.script = stop
    assert_broken(gateway.chat(stream=True).text)


def test_an_engine_that_never_answers_is_given_up_with_504(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    engine.script = hang
    response = gateway.chat(stream=True)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "backend_timeout"
    assert engine.aborted_within(1)
    assert_at_rest(gateway)
    assert gateway.client.post("/v1/embeddings", json={"model": "e", "input": "x"}).status_code == 200


def test_a_stream_that_stalls_ends_with_an_error_event(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    async def stall(connection: Connection) -> None:
        await begin(connection)
        await hang(connection)

    engine.script = stall
    assert assert_broken(gateway.chat(stream=True).text)["code"] == "backend_timeout"
    assert engine.aborted_within(1)
    assert_at_rest(gateway)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "too long", "type": "BadRequestError", "code": 400}, 400),
        ({"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}, 400),
        ({"message": "boom /secret/path", "type": "InternalServerError", "code": 500}, 502),
        ({"message": "later", "type": "ServiceUnavailable", "code": 503}, 503),
        ({"message": "full", "type": "rate_limit", "code": None}, 429),
    ],
)
def test_an_error_as_first_event_becomes_the_status(
    gateway: RunningGateway, engine: ScriptedEngine, error: dict, status: int
) -> None:
    async def refuse(connection: Connection) -> None:
        await connection.head()
        await connection.event({"error": error})
        await connection.finish()

    engine.script = refuse
    response = gateway.chat(stream=True)
    assert response.status_code == status
    assert "secret" not in response.text
    if status in (429, 503):
        assert int(response.headers["retry-after"]) >= 1


def test_an_engines_refusal_is_handed_on_with_its_counts(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    error = {
        "message": "4096 tokens, at most 2048", "type": "invalid_request_error", "param": "messages",
        "code": "context_length_exceeded",
    }  # fmt: skip

    async def refuse(connection: Connection) -> None:
        await connection.json({"error": error}, "400 Bad Request")

    engine.script = refuse
    response = gateway.chat()
    assert (response.status_code, response.json()) == (400, {"error": error})


def test_what_an_engine_says_about_its_own_failure_stays_inside(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    async def fail(connection: Connection) -> None:
        await connection.json(
            {"error": {"message": "at 0x7f12 in /secret/path"}}, "500 Internal Server Error"
        )

    engine.script = fail
    response = gateway.chat()
    assert response.status_code == 502
    assert "secret" not in response.text


@pytest.mark.parametrize(
    "junk",
    [
        b"half a li",
        b"nonsense\n\n",
        b'data: {"a":"\xff\xfe"}\n\n',
        b"data: {broken\n\n",
        b"data: " + b"x" * 10_000_000,
    ],
    ids=["half a line", "no event", "bad UTF-8", "bad JSON", "10 MB line"],
)
def test_a_malformed_stream_ends_with_an_error_event(
    gateway: RunningGateway, engine: ScriptedEngine, junk: bytes
) -> None:
    async def speak(connection: Connection) -> None:
        await begin(connection)
        await asyncio.sleep(0.05)
        await connection.chunk(junk)
        await connection.raw(b"0\r\n\r\n")

    engine.script = speak
    assert_broken(gateway.chat(stream=True).text)
    assert_at_rest(gateway)


def test_a_malformed_first_event_is_502(gateway: RunningGateway, engine: ScriptedEngine) -> None:
    async def speak(connection: Connection) -> None:
        await connection.head()
        await connection.chunk(b"nonsense\n\n")
        await connection.finish()

    engine.script = speak
    assert gateway.chat(stream=True).status_code == 502


def test_an_event_cut_into_single_bytes_arrives_whole(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    async def drip(connection: Connection) -> None:
        await connection.head()
        for byte in b'data: {"choices":[{"delta":{"content":"\xc3\xa9"}}]}\n\n':
            await connection.chunk(bytes([byte]))
            await asyncio.sleep(0.005)
        await connection.finish()

    engine.script = drip
    assert sse(gateway.chat(stream=True).text)[0]["choices"][0]["delta"]["content"] == "é"


def test_keep_alive_comments_do_not_count_as_the_first_token(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    async def wait_then_fail(connection: Connection) -> None:
        await connection.head()
        await connection.chunk(b": ping\n\n")
        await connection.event({"error": {"message": "no", "type": "invalid_request_error", "code": 400}})

    engine.script = wait_then_fail
    assert gateway.chat(stream=True).status_code == 400


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_the_answer_frees_the_engine(
    gateway: RunningGateway, engine: ScriptedEngine, stream: bool
) -> None:
    engine.script = hang
    body = (
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":%s}' % str(stream).lower().encode()
    )
    connection = raw_request(gateway.port, body)
    wait_until(lambda: len(engine.received) == 1, "the engine got the request")
    connection.close()
    assert engine.aborted_within(0.8)
    assert_at_rest(gateway)


def test_a_client_that_leaves_mid_stream_frees_the_engine(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    async def slowly(connection: Connection) -> None:
        await connection.head()
        while True:
            await connection.delta("word ")
            await asyncio.sleep(0.1)

    engine.script = slowly
    connection = raw_request(
        gateway.port, b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}'
    )
    assert b"200 OK" in connection.recv(4096)
    connection.close()
    assert engine.aborted_within(1)
    assert_at_rest(gateway)


def test_a_reader_that_stalls_is_cut_off_and_memory_stays_bounded(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    async def flood(connection: Connection) -> None:
        await connection.head()
        event = b"data: " + b'{"choices":[{"delta":{"content":"' + b"x" * 60_000 + b'"}}]}' + b"\n\n"
        while True:
            await connection.chunk(event)

    engine.script = flood
    before_mb = resident_mb(gateway.process.pid)
    connection = raw_request(
        gateway.port, b'{"model":"m","messages":[{"role":"user","content":"x"}],"stream":true}'
    )
    wait_until(lambda: len(engine.received) == 1, "the engine got the request")
    assert engine.aborted_within(5)
    assert resident_mb(gateway.process.pid) - before_mb < 30
    connection.close()
    assert_at_rest(gateway)

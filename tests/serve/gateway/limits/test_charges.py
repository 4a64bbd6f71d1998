"""What a key is charged for answers that do not come to their end, and what its requests at once can spend."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from everlearn.registry.keys import create_key
from everlearn.registry.usage import Used, sum_usage
from serve.gateway.limits.cost import UNNAMED_ANSWER_TOKENS
from tests.serve.gateway.conftest import RunningGateway, chat_body, raw_request, wait_until
from tests.support.serve.scripted_engine import Connection, chat_chunk, well

COUNTED = {"prompt_tokens": 700, "completion_tokens": 4, "total_tokens": 704}
"""What the engine says that it did for a request that broke off."""
TEXT = "word " * 400
CONTEXT = 2048
"""Tokens, of the models here: no answer is longer, whatever limit a request names."""
ALWAYS = ("2000-01-01", "2999-12-31")


@pytest.fixture(scope="module")
def metered(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    gateway = start_gateway(key_requests_in_flight=3)
    create_key(gateway.db, "first")
    gateway.add_engine("m")
    gateway.add_engine("e", task="embed")
    wait_until(lambda: gateway.chat().status_code == 401, "the key is noticed")
    return gateway


@pytest.fixture(autouse=True)
def behave(metered: RunningGateway) -> None:
    for engine in metered.engines.values():
        engine.script, engine.used = well, None


def settled(gateway: RunningGateway, key_id: str, requests: int = 1) -> Used:
    def found() -> list[Used]:
        return [
            one for one in sum_usage(gateway.db, *ALWAYS) if one.what == key_id and one.requests >= requests
        ]

    wait_until(lambda: bool(found()), "it is added", 15)
    return found()[0]


async def slowly(connection: Connection) -> None:
    """Say three words and then nothing, or nothing at all where no stream was asked for."""
    if connection.request.body.get("stream"):
        await connection.head()
        for _ in range(3):
            await connection.event(chat_chunk({"content": "x"}))
    await asyncio.sleep(60)


def leave(gateway: RunningGateway, secret: str, path: str, body: dict[str, Any]) -> None:
    """Ask, wait until the engine has the request, and hang up."""
    engine = gateway.engines["e-1" if body["model"] == "e" else "m-1"]
    engine.received.clear()
    data = json.dumps(body).encode()
    connection: socket.socket = raw_request(gateway.port, data, path, f"authorization: Bearer {secret}\r\n")
    if body.get("stream"):
        while b"data: " not in connection.recv(65536):
            pass
    wait_until(lambda: bool(engine.received), "the engine has it")
    time.sleep(0.1)
    connection.close()
    assert engine.aborted_within(5)


LEFT = {
    "chat": ("/v1/chat/completions", chat_body(text=TEXT)),
    "chat, streamed": ("/v1/chat/completions", chat_body(text=TEXT, stream=True)),
    "completion of two prompts": ("/v1/completions", {"model": "m", "prompt": [TEXT, TEXT], "n": 2}),
    "completion, streamed": ("/v1/completions", {"model": "m", "prompt": TEXT, "stream": True}),
    "response": ("/v1/responses", {"model": "m", "input": TEXT}),
    "response, streamed": ("/v1/responses", {"model": "m", "input": TEXT, "stream": True}),
    "message": ("/v1/messages", chat_body(text=TEXT, max_tokens=9)),
    "message, streamed": ("/v1/messages", chat_body(text=TEXT, max_tokens=9, stream=True)),
    "embedding": ("/v1/embeddings", {"model": "e", "input": TEXT}),
}


@pytest.mark.parametrize(("path", "body"), LEFT.values(), ids=LEFT.keys())
def test_an_answer_that_is_left_costs_what_its_engine_counted(
    metered: RunningGateway, path: str, body: dict[str, Any]
) -> None:
    secret, key = create_key(metered.db, "left", tokens_per_minute=1000, tokens_per_month=704)
    for engine in metered.engines.values():
        engine.script, engine.used = slowly, COUNTED
    leave(metered, secret, path, body)
    used = settled(metered, key.id)
    assert (used.prompt_tokens, used.completion_tokens, used.failed) == (700, 4, 1)
    metered.engines["m-1"].script = well
    headers = {"authorization": f"Bearer {secret}"}
    refused = metered.client.post("/v1/chat/completions", json=chat_body(), headers=headers)
    assert refused.json()["error"]["code"] == "insufficient_quota", "the month's budget as well"


@pytest.mark.parametrize(
    ("path", "body", "prompt", "completion"),
    [
        ("/v1/chat/completions", chat_body(text=TEXT, stream=True), 525, 3),
        ("/v1/chat/completions", chat_body(text=TEXT, max_tokens=40, n=2), 530, 80),
        ("/v1/chat/completions", chat_body(text=TEXT), 515, UNNAMED_ANSWER_TOKENS),
        ("/v1/chat/completions", chat_body(text=TEXT, max_tokens=2**31 - 1, n=2), 530, 2 * CONTEXT),
        ("/v1/embeddings", {"model": "e", "input": TEXT}, 510, 0),
    ],
)
def test_where_the_engine_does_not_tell_it_costs_what_was_reserved_and_sent(
    metered: RunningGateway, path: str, body: dict[str, Any], prompt: int, completion: int
) -> None:
    secret, key = create_key(metered.db, "left")
    for engine in metered.engines.values():
        engine.script, engine.used = slowly, None
    leave(metered, secret, path, body)
    used = settled(metered, key.id)
    assert prompt - 15 <= used.prompt_tokens <= prompt + 10
    assert used.completion_tokens == completion


def test_a_stream_that_breaks_costs_its_prompt_too(metered: RunningGateway) -> None:
    async def die(connection: Connection) -> None:
        await connection.head()
        for _ in range(3):
            await connection.event(chat_chunk({"content": "x"}))
        connection.reset()

    secret, key = create_key(metered.db, "broken")
    metered.engines["m-1"].script, metered.engines["m-1"].used = die, COUNTED
    headers = {"authorization": f"Bearer {secret}"}
    metered.client.post("/v1/chat/completions", json=chat_body(stream=True), headers=headers)
    used = settled(metered, key.id)
    assert (used.prompt_tokens, used.completion_tokens) == (700, 4)


def test_what_no_engine_worked_on_costs_nothing(metered: RunningGateway) -> None:
    async def refuse(connection: Connection) -> None:
        error = {
            "error": {"message": "too long", "type": "invalid_request_error", "param": None, "code": None}
        }
        await connection.json(error, "400 Bad Request")

    secret, key = create_key(metered.db, "refused", tokens_per_minute=1000)
    headers = {"authorization": f"Bearer {secret}"}
    engine = metered.engines["m-1"]
    engine.script = refuse
    for _ in range(3):
        assert (
            metered.client.post("/v1/chat/completions", json=chat_body(), headers=headers).status_code == 400
        )
        assert (
            metered.client.post("/v1/chat/completions", json={"model": "m"}, headers=headers).status_code
            == 400
        )
    engine.script = well
    answer = metered.client.post("/v1/chat/completions", json=chat_body(), headers=headers)
    assert answer.headers["x-ratelimit-remaining-tokens"] == "1000"
    assert settled(metered, key.id, 7).prompt_tokens == 7


@pytest.mark.parametrize(
    "count", [10**20, 10**400], ids=["more than the database holds", "more than a float"]
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_count_that_cannot_be_holds_no_place_and_stops_no_meter(
    metered: RunningGateway, count: int, stream: bool
) -> None:
    async def boast(connection: Connection) -> None:
        usage = {"prompt_tokens": count, "completion_tokens": 2, "total_tokens": count}
        if connection.request.body.get("stream"):
            await connection.head()
            await connection.event(chat_chunk({"content": "x"}, "stop"))
            await connection.event(chat_chunk({}) | {"choices": [], "usage": usage})
            await connection.finish()
            return
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        await connection.json({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage})

    metered.engines["m-1"].script = boast
    secret, key = create_key(metered.db, "boast", tokens_per_minute=1000, requests_in_flight=1)
    headers = {"authorization": f"Bearer {secret}"}
    for _ in range(2):
        body = chat_body(stream=stream)
        answer = metered.client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200
    assert settled(metered, key.id, 2).completion_tokens == 4


def test_requests_at_once_cannot_spend_the_same_tokens(metered: RunningGateway) -> None:
    """Whether or not they say how long their answers may be."""
    going = threading.Event()

    async def wait(connection: Connection) -> None:
        while not going.is_set():
            await asyncio.sleep(0.01)
        await well(connection)

    metered.engines["m-1"].script = wait
    for fields in ({}, {"max_tokens": 60}):
        going.clear()
        secret, key = create_key(metered.db, "at once", tokens_per_minute=50, requests_in_flight=100)
        headers = {"authorization": f"Bearer {secret}"}

        def ask(fields: dict[str, Any] = fields, headers: dict[str, str] = headers) -> int:
            with httpx2.Client(base_url=metered.url, timeout=20, trust_env=False) as client:
                body = chat_body(**fields)
                return client.post("/v1/chat/completions", json=body, headers=headers).status_code

        with ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(ask) for _ in range(6)]
            wait_until(lambda: sum(one.done() for one in asked) == 5, "five are refused", 10)  # noqa: B023
            going.set()
            assert sorted(one.result() for one in asked) == [200] + [429] * 5
        used = settled(metered, key.id, 6)
        assert used.prompt_tokens + used.completion_tokens == 10
        assert ask() == 200, "what was reserved and not used is given back"


def test_a_key_has_so_many_requests_in_flight_and_others_go_on(metered: RunningGateway) -> None:
    """The setting's number, or its own; files on their way in count as well."""
    metered.engines["m-1"].script = slowly
    own, _ = create_key(metered.db, "own", requests_in_flight=1)
    usual, _ = create_key(metered.db, "usual")
    for secret, most in ((own, 1), (usual, 3)):
        headers = f"authorization: Bearer {secret}\r\n"
        body = json.dumps(chat_body(stream=True)).encode()
        held = [raw_request(metered.port, body, headers=headers) for _ in range(most)]
        for connection in held:
            assert b"200 OK" in connection.recv(4096)
        bearer = {"authorization": f"Bearer {secret}"}
        refused = metered.client.post("/v1/chat/completions", json=chat_body(), headers=bearer)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert f"{most} requests in flight" in refused.json()["error"]["message"]
        upload = {"file": ("a.jsonl", b"{}"), "purpose": (None, "batch")}
        assert metered.client.post("/v1/files", files=upload, headers=bearer).status_code == 429
        assert metered.client.get("/v1/files", headers=bearer).status_code == 200
        for connection in held:
            connection.close()
        wait_until(
            lambda: metered.client.post("/v1/files", files=upload, headers=bearer).status_code == 200,  # noqa: B023
            "a place is free again",
            5,
        )

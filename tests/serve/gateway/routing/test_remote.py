"""A model of another server behind this gateway, and models that answer instead of others."""

import json
from collections.abc import Callable

import pytest

from everlearn.registry.keys import create_key
from serve.gateway.routing.prefixes import BLOCK_BYTES, REMEMBERED, Prefixes, blocks
from tests.serve.gateway.conftest import RunningGateway, chat_body, sse, wait_until
from tests.support.serve.scripted_engine import Connection, well


@pytest.fixture(scope="module")
def far(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """The other server: a gateway that asks for a key."""
    gateway = start_gateway()
    gateway.add_engine("theirs")
    return gateway


@pytest.fixture(scope="module")
def near(start_gateway: Callable[..., RunningGateway], far: RunningGateway) -> RunningGateway:
    secret, _ = create_key(far.db, "near", models=["theirs"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAR_KEY", secret)
        remote = {"model": "big", "url": f"{far.url}/v1", "serves_as": "theirs", "key_variable": "FAR_KEY"}
        gateway = start_gateway(
            remotes=[remote, remote | {"model": "locked", "key_variable": "NOT_SET"}],
            fallbacks=[{"model": "m", "to": ["gone", "big"]}],
        )
    gateway.add_engine("m")
    wait_until(lambda: gateway.chat("big").status_code == 200, "the remote model is there")
    return gateway


def test_a_remote_model_answers_under_its_name_here(near: RunningGateway, far: RunningGateway) -> None:
    engine = far.engines["theirs-1"]
    engine.received.clear()
    answer = near.chat("big", text="hello")
    assert answer.status_code == 200
    assert answer.headers["x-everlearn-version"] == f"big@127.0.0.1:{far.port}"
    assert engine.received[0].body["model"] == "theirs"
    assert sse(near.chat("big", stream=True).text)[-1] == "[DONE]"
    assert "big" in [model["id"] for model in near.client.get("/v1/models").json()["data"]]


def test_a_remote_server_that_refuses_our_key_is_not_routed_to(near: RunningGateway) -> None:
    answer = near.chat("locked")
    assert answer.status_code == 503
    assert "locked" not in near.client.get("/v1/models").text
    assert '"away":"status 401"' in near.log()


def test_another_model_answers_while_one_is_away(near: RunningGateway) -> None:
    assert near.chat().headers["x-everlearn-version"] == "m@1"
    near.remove_engine("m-1")
    answer = near.chat()
    assert answer.status_code == 200
    assert answer.headers["x-everlearn-version"].startswith("big@")
    assert near.metric('everlearn_fallbacks_total{model="m",to="gone"}') == 1
    assert near.metric('everlearn_fallbacks_total{model="gone",to="big"}') == 1
    near.add_engine("m")
    assert near.chat().headers["x-everlearn-version"] == "m@1"


def test_another_model_answers_for_an_engine_that_breaks_or_is_full(near: RunningGateway) -> None:
    async def full(connection: Connection) -> None:
        error = {"message": "full", "type": "rate_limit_error", "param": None, "code": None}
        await connection.json({"error": error}, status="429 Too Many Requests")

    async def broken(connection: Connection) -> None:
        await connection.raw(b"nonsense\r\n\r\n")

    async def refuses(connection: Connection) -> None:
        error = {"message": "too long", "type": "invalid_request_error", "param": None, "code": None}
        await connection.json({"error": error}, status="400 Bad Request")

    engine = near.engines["m-1"]
    for script, status, version in ((full, 200, "big"), (broken, 200, "big"), (refuses, 400, None)):
        engine.script = script
        answer = near.chat()
        assert answer.status_code == status
        assert answer.headers.get("x-everlearn-version", "None").partition("@")[0] == str(version)
    engine.script = well
    wait_until(lambda: near.chat().headers["x-everlearn-version"] == "m@1", "the engine is trusted again")


def test_a_key_falls_back_only_to_what_it_covers(near: RunningGateway) -> None:
    narrow, _ = create_key(near.db, "narrow", models=["m"])
    wide, _ = create_key(near.db, "wide", models=["m", "big"])
    wait_until(lambda: near.client.get("/v1/models").status_code == 401, "keys are asked for")
    set_aside = near.engines["m-1"]

    async def full(connection: Connection) -> None:
        await connection.json({"error": {"message": "full"}}, status="429 Too Many Requests")

    set_aside.script = full
    for secret, status in ((narrow, 429), (wide, 200)):
        headers = {"authorization": f"Bearer {secret}"}
        answer = near.client.post("/v1/chat/completions", json=chat_body(), headers=headers)
        assert answer.status_code == status
    set_aside.script = well


# ---------------------------------------------------------------------------------------------------- prefixes


def body(text: str, **fields: object) -> bytes:
    return json.dumps({"model": "m", **fields, "messages": [{"role": "user", "content": text}]}).encode()


def test_prompts_with_the_same_beginning_share_its_blocks_whatever_stands_before() -> None:
    one = blocks(body("a" * 4 * BLOCK_BYTES + "one", seed=1))
    two = blocks(body("a" * 4 * BLOCK_BYTES + "two" * 200, seed=2, temperature=0.5))
    assert one[:4] == two[:4] and len(set(one)) == len(one)
    assert blocks(body("b" + "a" * 4 * BLOCK_BYTES))[0] != one[0]
    assert blocks(b'{"model": "m", "input": "no prompt"}') == []


def test_an_engine_has_read_what_it_was_sent_and_forgets_the_oldest() -> None:
    prefixes, prompt = Prefixes(), list(range(10))
    assert prefixes.unread(prompt) == 10
    prefixes.add(prompt[:6])
    assert prefixes.unread(prompt) == 4
    assert prefixes.unread([99, *prompt]) == 11
    prefixes.add(list(range(100, 100 + REMEMBERED)))
    assert prefixes.unread(prompt) == 10


def test_requests_of_one_conversation_stay_with_one_engine_until_it_is_busy(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway()
    for id in ("one", "two"):
        gateway.add_engine("m", id=id)
    talk = "we talked about this before. " * 60
    for turn in range(8):
        gateway.chat(text=talk + "and then " * turn)
        gateway.chat(text=f"{turn} something else entirely")
    of_talk = [
        sum("we talked" in request.body["messages"][0]["content"] for request in engine.received)
        for engine in gateway.engines.values()
    ]
    assert sorted(of_talk) == [0, 8]

"""Schemas that clients give: an answer keeps to a strict one or is an error; what engines leave open is told."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve.gateway.formats.schema_check import SchemaCheckPool, SchemaViolation, StrictAnswerCheck
from serve.gateway.formats.schema_child import flaw
from tests.serve.gateway.conftest import RunningGateway, chat_body, sse, wait_until
from tests.support.serve.scripted_engine import USAGE, Connection, ScriptedEngine, chat_chunk

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
STRICT: Any = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY, "strict": True}}
}
LOOSE: Any = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}}}
TOOL: Any = {"type": "function", "function": {"name": "go", "parameters": CITY, "strict": True}}


def says(text: str, finish: str | None = "stop", arguments: str | None = None) -> Callable[[Connection], Any]:
    """An engine whose answer is `text`, or a call with `arguments`."""
    function = {"name": "go", "arguments": arguments}
    calls = [{"index": 0, "id": "c", "type": "function", "function": function}] if arguments else None

    async def script(connection: Connection) -> None:
        said = {"tool_calls": calls} if calls else {}
        if not connection.request.body.get("stream"):
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": text} | said,
                "finish_reason": finish,
            }
            answer = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            await connection.json(answer | {"usage": USAGE})
            return
        await connection.head()
        for letter in text:
            await connection.delta(letter)
        if said:
            await connection.event(chat_chunk(said))
        await connection.event(chat_chunk({}, finish))
        await connection.finish()

    return script


RIGHT, WRONG = '{"city": "Oslo"}', '{"town": "Oslo"}'


@pytest.mark.parametrize(
    ("script", "options", "kept"),
    [
        (says(RIGHT), STRICT, True),
        (says(WRONG), STRICT, False),
        (says("Oslo"), STRICT, False),
        (says(""), STRICT, False),
        (says("[" * 5000), STRICT, False),
        (says(WRONG), LOOSE, True),
        (says(WRONG, "eos_token"), STRICT, False),
        (says(WRONG, None), STRICT, False),
        (says(WRONG, "length"), STRICT, True),
        (says('{"city": '), STRICT | {"stop": ["Oslo"]}, True),
        (says(WRONG, "content_filter"), STRICT, True),
        (says("", "tool_calls", RIGHT), {"tools": [TOOL]} | STRICT, True),
        (says("", "tool_calls", WRONG), {"tools": [TOOL]}, False),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_keeps_to_its_strict_schema_or_is_an_error(
    gateway: RunningGateway, engine: ScriptedEngine, script: Any, options: Any, kept: bool, stream: bool
) -> None:
    engine.script = script
    answer = gateway.chat(stream=stream, **options)
    if stream:
        events = sse(answer.text)
        assert (events[-1] == "[DONE]") == kept
        error = None if kept else events[-1]["error"]
        assert not any(event["choices"][0]["finish_reason"] for event in events[:-1]) or kept
    else:
        assert answer.status_code == (200 if kept else 502)
        error = None if kept else answer.json()["error"]
    if error:
        assert error["code"] == "schema_violation"
        assert "strict schema" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_responses_keep_their_promises_too(
    gateway: RunningGateway, engine: ScriptedEngine, stream: bool
) -> None:
    engine.script = says(WRONG)
    body = {"model": "m", "input": "hi", "stream": stream}
    format = {"type": "json_schema", "name": "x", "schema": CITY, "strict": True}
    answer = gateway.client.post("/v1/responses", json=body | {"text": {"format": format}})
    assert answer.status_code == (200 if stream else 502)
    assert "strict schema" in answer.text
    if stream:
        kinds = [event["type"] for event in sse(answer.text)]
        assert (kinds[0], kinds[-1]) == ("response.created", "response.failed")
        assert "response.output_text.delta" in kinds


def test_a_remote_model_that_answers_wrongly_is_an_error(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    far = start_gateway()
    far.add_engine("theirs").script = says(WRONG)
    near = start_gateway(remotes=[{"model": "big", "url": f"{far.url}/v1", "serves_as": "theirs"}])
    wait_until(lambda: near.chat("big").status_code == 200, "the remote model is there")
    assert near.chat("big", **LOOSE).status_code == 200
    refused = near.chat("big", **STRICT)
    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "schema_violation")


@pytest.mark.parametrize("trusted", [True, False])
def test_an_answer_that_cannot_be_checked_passes_only_if_its_engine_follows_grammars(trusted: bool) -> None:
    async def check() -> None:
        choice = {"index": 0, "message": {"content": "5"}, "finish_reason": "stop"}
        checks = SchemaCheckPool()
        try:
            await StrictAnswerCheck({None: {"type": 5}}, checks).check_whole(
                json.dumps({"choices": [choice]}).encode(), trusted=trusted
            )
        finally:
            await checks.stop()

    if trusted:
        asyncio.run(check())
    else:
        with pytest.raises(SchemaViolation, match="could not be held"):
            asyncio.run(check())


@pytest.mark.parametrize(
    ("choices", "kept"),
    [
        ([{"message": {"content": RIGHT}}], True),
        ([{"message": {"content": WRONG}}], False),
        ([{"index": 0, "message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}], True),
        ([{"index": 0, "finish_reason": "stop"}], False),
        (5, False),
    ],
)
def test_an_answer_of_another_shape_passes_only_where_it_can_be_held_against_its_schema(
    choices: Any, kept: bool
) -> None:
    async def check() -> None:
        checks = SchemaCheckPool()
        try:
            answer = json.dumps({"choices": choices}).encode()
            await StrictAnswerCheck({None: CITY}, checks).check_whole(answer, trusted=False)
        finally:
            await checks.stop()

    if kept:
        asyncio.run(check())
    else:
        with pytest.raises(SchemaViolation):
            asyncio.run(check())


def test_a_schema_that_takes_for_ever_holds_nobody_up(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    doubling: Any = {f"A{n}": {"anyOf": [{"$ref": f"#/$defs/A{n + 1}"}] * 2} for n in range(60)}
    schema = {"$defs": doubling | {"A60": {"type": "string"}}, "$ref": "#/$defs/A0"}
    gateway = start_gateway(first_token_timeout_s=1, inter_token_timeout_s=1)
    gateway.add_engine("m").script = says("5")
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    body = chat_body(response_format=format, stream=True)
    with gateway.client.stream("POST", "/v1/chat/completions", json=body) as slow:
        next(slow.iter_lines())
        for _ in range(20):
            began = time.monotonic()
            assert gateway.client.get("/health").status_code == 200
            assert time.monotonic() - began < 1
            time.sleep(0.02)


def test_nothing_of_the_folder_that_the_server_is_started_in_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jsonschema_rs.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)

    async def check() -> str | bool | None:
        checks = SchemaCheckPool()
        try:
            return await checks.flaw(CITY, RIGHT, 20)
        finally:
            await checks.stop()

    assert asyncio.run(check()) is None


def test_flaws_are_told_shortly_and_half_a_character_or_nan_breaks_nothing() -> None:
    key = "a" * 200_000
    found = flaw({"properties": {key: {"type": "string"}}}, json.dumps({key: 1}))
    assert isinstance(found, str) and found.startswith("the schema's properties.aaa") and len(found) < 1100
    assert flaw({"type": "number"}, "NaN") == "it is not JSON"
    assert flaw({"maxLength": 5}, '"\\ud800"') is False


def test_documents_elsewhere_are_not_fetched_and_nonsense_is_told() -> None:
    assert flaw({"$ref": "http://127.0.0.1:1/x"}, "5") is False
    assert flaw({"type": 5}, "5") is False
    assert flaw({"type": "string"}, "5") == "the schema's type does not hold at $"
    assert flaw({"properties": {"a": {"pattern": "^(?=b)b$"}}}, json.dumps({"a": "b"})) is None


def test_what_an_engine_leaves_open_of_a_schema_is_told_to_the_client(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    async def open_format(connection: Connection) -> None:
        body = b'{"choices": []}'
        head = "content-type: application/json\r\nx-everlearn-left-open: a.format, b.pattern"
        await connection.raw(
            f"HTTP/1.1 200 OK\r\n{head}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )

    assert "x-everlearn-left-open" not in gateway.chat().headers
    engine.script = open_format
    assert gateway.chat().headers["x-everlearn-left-open"] == "a.format, b.pattern"

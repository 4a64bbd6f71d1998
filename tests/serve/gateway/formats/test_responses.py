"""/v1/responses through the stock client, and what the engine is asked for."""

import json
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from serve.answer_facts import HEADER, AnswerFacts
from tests.serve.gateway.conftest import RunningGateway
from tests.support.serve import schemas
from tests.support.serve.scripted_engine import USAGE, Connection, ScriptedEngine, chat_chunk

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}


@pytest.fixture
def client(gateway: RunningGateway) -> OpenAI:
    return OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


async def call_two_tools(connection: Connection) -> None:
    """A sentence, then two function calls with their arguments in pieces."""
    if not connection.request.body.get("stream"):
        calls = [
            {
                "id": f"call_{i}",
                "type": "function",
                "function": {"name": "weather", "arguments": f'{{"at":{i}}}'},
            }
            for i in range(2)
        ]
        message = {"role": "assistant", "content": None, "tool_calls": calls}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        await connection.json({"id": "c", "object": "chat.completion", "choices": [choice], "usage": USAGE})
        return
    await connection.head()
    await connection.delta("Let me see.")
    for index in range(2):
        first = {"index": index, "id": f"call_{index}", "function": {"name": "weather", "arguments": ""}}
        await connection.event(chat_chunk({"tool_calls": [first]}))
        for piece in ('{"at"', f":{index}}}"):
            call = {"index": index, "function": {"arguments": piece}}
            await connection.event(chat_chunk({"tool_calls": [call]}))
    await connection.event(chat_chunk({}, "tool_calls"))
    await connection.event(chat_chunk({}) | {"choices": [], "usage": USAGE})
    await connection.finish()


def test_text_in_text_out(client: OpenAI) -> None:
    response = client.responses.create(model="m", input="x", metadata={"a": "b"})
    assert response.output_text == "Paris!"
    assert response.status == "completed"
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (
        7,
        3,
        10,
    )
    assert response.metadata == {"a": "b"}
    assert response.store is False


def test_the_engine_is_asked_for_the_same_as_chat(client: OpenAI, engine: ScriptedEngine) -> None:
    items: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sun"},
    ]
    format = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    engine.script = call_two_tools
    client.responses.create(
        model="m", input=items, instructions="Be brief.", tools=[TOOL], tool_choice={"type": "function", "name": "weather"},
        text={"format": format}, max_output_tokens=5, temperature=0.1, top_p=0.9, parallel_tool_calls=False,
    )  # fmt: skip
    call = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}
    assert engine.received[-1].path == "/v1/chat/completions"
    assert engine.received[-1].body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
            {"role": "assistant", "content": "Let me see.", "tool_calls": [{"id": "c1"} | call, {"id": "c2"} | call]},
            {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        ],
        "response_format": {"type": "json_schema", "json_schema": {k: v for k, v in format.items() if k != "type"}},
        "tools": [{"type": "function", "function": {k: v for k, v in TOOL.items() if k != "type"}}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "max_completion_tokens": 5, "temperature": 0.1, "top_p": 0.9, "parallel_tool_calls": False,
    }  # fmt: skip


def test_streamed_text_comes_as_typed_events_in_order(client: OpenAI) -> None:
    with client.responses.stream(model="m", input="x") as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Paris!"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert final.output_text == "Paris!"
    assert final.usage.total_tokens == 10


@pytest.mark.parametrize("stream", [True, False])
def test_function_calls_become_items(client: OpenAI, engine: ScriptedEngine, stream: bool) -> None:
    engine.script = call_two_tools
    if stream:
        with client.responses.stream(model="m", input="x", tools=[TOOL]) as streaming:
            pieces = [e.delta for e in streaming if e.type == "response.function_call_arguments.delta"]
            response = streaming.get_final_response()
        assert "".join(pieces) == '{"at":0}{"at":1}'
        assert response.output[0].content[0].text == "Let me see."
    else:
        response = client.responses.create(model="m", input="x", tools=[TOOL])
    calls = [item for item in response.output if item.type == "function_call"]
    assert [(call.call_id, call.name, json.loads(call.arguments)["at"]) for call in calls] == [
        ("call_0", "weather", 0), ("call_1", "weather", 1),
    ]  # fmt: skip
    assert {call.status for call in calls} == {"completed"}


def test_an_answer_cut_by_length_is_incomplete(client: OpenAI, engine: ScriptedEngine) -> None:
    async def cut(connection: Connection) -> None:
        await connection.head()
        await connection.delta("Par", "length")
        await connection.finish()

    engine.script = cut
    with client.responses.stream(model="m", input="x", max_output_tokens=1) as stream:
        events = list(stream)
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"
    assert events[-1].response.output[0].status == "incomplete"


def test_the_last_item_of_a_whole_answer_that_was_cut_is_incomplete(
    client: OpenAI, engine: ScriptedEngine
) -> None:
    async def cut(connection: Connection) -> None:
        call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{"}}
        choice = {"message": {"content": "Let me", "tool_calls": [call]}, "finish_reason": "length"}
        await connection.json({"choices": [choice], "usage": USAGE})

    engine.script = cut
    response = client.responses.create(model="m", input="x", tools=[TOOL])
    assert (response.status, response.completed_at) == ("incomplete", None)
    assert [item.status for item in response.output] == ["completed", "incomplete"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_response_says_what_it_was_sampled_with(
    client: OpenAI, engine: ScriptedEngine, stream: bool
) -> None:
    """The client's values, else those that the engine tells, else OpenAI's defaults."""

    def sampled(**fields: Any) -> tuple[float | None, float | None]:
        if not stream:
            response = client.responses.create(model="m", input="x", **fields)
        else:
            response = next(
                iter(client.responses.create(model="m", input="x", stream=True, **fields))
            ).response
        return response.temperature, response.top_p

    async def tell(connection: Connection) -> None:
        told = AnswerFacts(temperature=0.2, top_p=0.9).headers()[HEADER]
        if connection.request.body.get("stream"):
            await connection.head(x_everlearn_told=told)
            await connection.delta("x", "stop")
            await connection.finish()
        else:
            choice = {"message": {"content": "x"}, "finish_reason": "stop"}
            await connection.json({"choices": [choice]}, x_everlearn_told=told)

    assert sampled() == (1, 1)
    engine.script = tell
    assert sampled() == (0.2, 0.9)
    assert sampled(temperature=0) == (0, 0.9)


def test_a_stream_that_breaks_ends_with_response_failed(client: OpenAI, engine: ScriptedEngine) -> None:
    async def die(connection: Connection) -> None:
        await connection.head()
        await connection.delta("Par")
        connection.reset()

    engine.script = die
    events = list(client.responses.create(model="m", input="x", stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.code == "server_error"
    assert events[-1].response.output[0].status == "incomplete"
    for event in events:
        assert schemas.fits(type(event), event.to_dict(), open=True) == []


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_is_no_completion_fails_cleanly(
    gateway: RunningGateway, engine: ScriptedEngine, stream: bool
) -> None:
    async def odd(connection: Connection) -> None:
        if stream:
            await connection.head()
            await connection.event({"choices": 5})
            await connection.finish()
        else:
            await connection.json({"choices": []})

    engine.script = odd
    response = gateway.client.post("/v1/responses", json={"model": "m", "input": "x", "stream": stream})
    assert response.status_code == (200 if stream else 502)
    assert ("response.failed" in response.text) == stream


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "resp_1"},
        {"store": True},
        {"background": True},
        {"reasoning": {"effort": "low"}},
    ],
)
def test_what_needs_a_store_or_thought_is_refused_by_name(client: OpenAI, fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.responses.create(model="m", input="x", **fields)
    assert caught.value.param == next(iter(fields))

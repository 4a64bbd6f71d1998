"""/v1/messages: what the engine is asked for, what comes back, and errors in Anthropic's shape."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from everlearn.registry.keys import create_key
from serve.answer_facts import HEADER, AnswerFacts
from tests.serve.gateway.conftest import RunningGateway, wait_until
from tests.serve.gateway.formats.test_responses import call_two_tools
from tests.support.serve.anthropic_events import events_of, message_of
from tests.support.serve.scripted_engine import Connection, ScriptedEngine, chat_chunk

USER = {"role": "user", "content": "hi"}
TOOL = {"name": "weather", "description": "The weather", "input_schema": {"type": "object"}}
FUNCTION = {"name": "weather", "description": "The weather", "parameters": {"type": "object"}}


def post(gateway: RunningGateway, path: str = "/v1/messages", **fields: Any) -> httpx2.Response:
    body = {"model": "m", "messages": [USER]} | ({"max_tokens": 5} if path == "/v1/messages" else {}) | fields
    return gateway.client.post(path, json=body, headers={"anthropic-version": "2023-06-01"})


def answered(gateway: RunningGateway, **fields: Any) -> dict[str, Any]:
    """A message, whole or built up from the stream."""
    response = post(gateway, **fields)
    assert response.status_code == 200, response.text
    return message_of(events_of(response.text)) if fields.get("stream") else response.json()


@pytest.mark.parametrize("stream", [True, False])
def test_text_in_text_out(gateway: RunningGateway, stream: bool) -> None:
    message = answered(gateway, stream=stream)
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message", "role": "assistant", "model": "m",
        "content": [{"type": "text", "text": "Paris!", "citations": None}],
        "stop_reason": "end_turn", "stop_sequence": None, "stop_details": None, "container": None,
        "usage": {
            "input_tokens": 7, "output_tokens": 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "server_tool_use": None, "service_tier": "standard", "inference_geo": None,
        },
    }  # fmt: skip


def test_a_stream_begins_with_the_length_of_its_prompt(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    async def tell(connection: Connection) -> None:
        await connection.head(
            x_everlearn_told=AnswerFacts(prompt_tokens=9, cached_tokens=5).headers()[HEADER]
        )
        await connection.delta("x", "stop")
        await connection.finish()

    engine.script = tell
    counted = events_of(post(gateway, stream=True).text)[0]["message"]["usage"]
    assert (counted["input_tokens"], counted["cache_read_input_tokens"]) == (4, 5)


@pytest.mark.parametrize("told", ["", "{", "[]", '{"prompt_tokens":"x"}', '{"prompt_tokens":-1}'])
def test_what_another_server_writes_into_that_header_breaks_nothing(
    gateway: RunningGateway, engine: ScriptedEngine, told: str
) -> None:
    async def odd(connection: Connection) -> None:
        await connection.head(x_everlearn_told=told)
        await connection.delta("x", "stop")
        await connection.finish()

    engine.script = odd
    assert answered(gateway, stream=True)["content"][0]["text"] == "x"


def test_the_engine_is_asked_for_the_same_as_chat(gateway: RunningGateway, engine: ScriptedEngine) -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "weather?"} | cached]},
        {"role": "assistant", "content": [
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "c1", "name": "weather", "input": {"at": "Köln"}},
            {"type": "tool_use", "id": "c2", "name": "weather", "input": {}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": "sun"},
            {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "no"}], "is_error": True},
            {"type": "text", "text": "and now?"},
        ]},
    ]  # fmt: skip
    answered(
        gateway, messages=turns, system=[{"type": "text", "text": "Be brief."} | cached], tools=[TOOL | cached],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True}, max_tokens=5,
        temperature=0.1, top_p=0.9, top_k=3, stop_sequences=["x"], metadata={"user_id": "u"}, thinking={"type": "disabled"},
    )  # fmt: skip
    calls = [
        {"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}}
        for id, arguments in (("c1", '{"at": "Köln"}'), ("c2", "{}"))
    ]

    def text(words: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": words}]

    assert engine.received[-1].path == "/v1/chat/completions"
    assert engine.received[-1].body == {
        "model": "m",
        "messages": [
            {"role": "system", "content": text("Be brief.")},
            {"role": "user", "content": text("weather?")},
            {"role": "assistant", "content": text("Let me see."), "tool_calls": calls},
            {"role": "tool", "tool_call_id": "c1", "content": "sun"},
            {"role": "tool", "tool_call_id": "c2", "content": text("Error: ") + text("no")},
            {"role": "user", "content": text("and now?")},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}}, "parallel_tool_calls": False,
        "max_completion_tokens": 5, "temperature": 0.1, "top_p": 0.9, "top_k": 3, "stop": ["x"],
    }  # fmt: skip


def test_an_answer_may_have_the_shape_of_a_schema(gateway: RunningGateway, engine: ScriptedEngine) -> None:
    async def keep_to_it(connection: Connection) -> None:
        choice = {"index": 0, "message": {"content": "{}"}, "finish_reason": "stop"}
        await connection.json({"choices": [choice], "usage": None})

    engine.script = keep_to_it
    schema = {"type": "object", "properties": {}}
    answered(gateway, output_config={"format": {"type": "json_schema", "schema": schema}, "effort": "max"})
    shape = {"name": "answer", "schema": schema, "strict": True}
    assert engine.received[-1].body["response_format"] == {"type": "json_schema", "json_schema": shape}


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking": {"type": "adaptive", "display": "omitted"}},
        {"thread": {"type": "create"}},
        {"cache_control": {"type": "ephemeral", "ttl": "1h"}},
        {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
        {"context_management": None, "container": None, "thread": None},
        {"mcp_servers": [], "speed": "standard", "tools": []},
        {"output_config": {"effort": "low"}},
    ],
)
def test_hints_change_nothing(
    gateway: RunningGateway, engine: ScriptedEngine, fields: dict[str, Any]
) -> None:
    answered(gateway)
    plain = engine.received[-1].body
    answered(gateway, **fields)
    assert engine.received[-1].body == plain


def test_a_tool_is_strict_where_it_says_so(gateway: RunningGateway, engine: ScriptedEngine) -> None:
    more = {"eager_input_streaming": True, "defer_loading": False, "allowed_callers": ["direct"]}
    answered(gateway, tools=[TOOL | {"strict": True} | more])
    assert engine.received[-1].body["tools"] == [
        {"type": "function", "function": FUNCTION | {"strict": True}}
    ]


def test_an_answer_comes_back_as_its_client_keeps_it(gateway: RunningGateway, engine: ScriptedEngine) -> None:
    """With null for whatever the answer had not, and instructions in the midst of the conversation."""
    call = {"type": "tool_use", "id": "c", "name": "weather", "input": {}, "caller": {"type": "direct"}}
    turns = [
        USER,
        {"role": "assistant", "content": []},
        {"role": "user", "content": []},
        {"role": "assistant", "name": None, "content": [
            {"type": "text", "text": "x", "citations": None, "parsed_output": None},
            call | {"toolset_name": None, "cache_control": None},
            call | {"caller": None},
        ]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": None, "is_error": None}]},
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    ]  # fmt: skip
    answered(gateway, messages=turns)
    sent = engine.received[-1].body["messages"]
    assert [message["role"] for message in sent] == [
        "user",
        "assistant",
        "user",
        "assistant",
        "tool",
        "system",
    ]
    assert (sent[1]["content"], sent[2]["content"], len(sent[3]["tool_calls"])) == ("", "", 2)


@pytest.mark.parametrize(("choice", "asked"), [("auto", "auto"), ("any", "required"), ("none", "none")])
def test_choices_of_tools_have_their_words(
    gateway: RunningGateway, engine: ScriptedEngine, choice: str, asked: str
) -> None:
    answered(gateway, tools=[TOOL], tool_choice={"type": choice})
    assert engine.received[-1].body["tool_choice"] == asked


@pytest.mark.parametrize("stream", [True, False])
def test_function_calls_become_blocks(gateway: RunningGateway, engine: ScriptedEngine, stream: bool) -> None:
    engine.script = call_two_tools
    message = answered(gateway, tools=[TOOL], stream=stream)
    assert message["content"] == [{"type": "text", "text": "Let me see.", "citations": None}] * stream + [
        {
            "type": "tool_use",
            "id": f"call_{n}",
            "name": "weather",
            "input": {"at": n},
            "caller": {"type": "direct"},
        }
        for n in range(2)
    ]
    assert (message["stop_reason"], message["usage"]["output_tokens"]) == ("tool_use", 3)


@pytest.mark.parametrize(
    ("finish", "more", "stop"),
    [
        ("stop", {}, ("end_turn", None)),
        ("length", {}, ("max_tokens", None)),
        ("stop", {"stop_reason": "END"}, ("stop_sequence", "END")),
        ("stop", {"stop_reason": 2}, ("end_turn", None)),
        ("content_filter", {}, ("refusal", None)),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_says_why_it_ended(
    gateway: RunningGateway, engine: ScriptedEngine, stream: bool, finish: str, more: dict[str, Any],
    stop: tuple[str, str | None],
) -> None:  # fmt: skip
    async def end(connection: Connection) -> None:
        if not stream:
            choice = {"index": 0, "message": {"content": ""}, "finish_reason": finish} | more
            await connection.json({"choices": [choice], "usage": None})
            return
        await connection.head()
        chunk = chat_chunk({}, finish)
        chunk["choices"][0] |= more
        await connection.event(chunk)
        await connection.finish()

    engine.script = end
    message = answered(gateway, stream=stream)
    assert (message["stop_reason"], message["stop_sequence"]) == stop
    assert message["content"] == []


def test_a_call_that_was_cut_has_the_input_that_came(gateway: RunningGateway, engine: ScriptedEngine) -> None:
    async def cut(connection: Connection) -> None:
        function = {"name": "weather", "arguments": '{"at": "Kö'}
        calls = [{"id": "call_0", "type": "function", "function": function}]
        choice = {"index": 0, "message": {"content": None, "tool_calls": calls}, "finish_reason": "length"}
        await connection.json({"choices": [choice], "usage": None})

    engine.script = cut
    message = answered(gateway, tools=[TOOL])
    assert message["stop_reason"] == "max_tokens"
    (block,) = message["content"]
    assert (block["type"], block["name"], block["input"]) == ("tool_use", "weather", {"at": "Kö"})


def test_what_the_cache_gave_is_counted_apart(gateway: RunningGateway, engine: ScriptedEngine) -> None:
    async def cached(connection: Connection) -> None:
        counted = {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 5}}
        choice = {"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}
        await connection.json({"choices": [choice], "usage": counted})

    engine.script = cached
    counted = answered(gateway)["usage"]
    assert (counted["input_tokens"], counted["cache_read_input_tokens"]) == (4, 5)


async def die(connection: Connection) -> None:
    await connection.head()
    await connection.delta("Par")
    connection.reset()


async def fall_silent(connection: Connection) -> None:
    await connection.head()
    await connection.delta("Par")
    await asyncio.sleep(3600)


async def tell_of_an_error(connection: Connection) -> None:
    await connection.head()
    await connection.delta("Par")
    await asyncio.sleep(0.2)
    await connection.event({"error": {"message": "secret path", "type": "server_error", "code": 500}})


async def mix_calls(connection: Connection) -> None:
    await connection.head()
    for index in (0, 1, 0):
        function = {"name": "weather", "arguments": "{"}
        await connection.event(
            chat_chunk({"tool_calls": [{"index": index, "id": "c", "function": function}]})
        )
        await asyncio.sleep(0.2)
    await connection.finish()


@pytest.mark.parametrize(
    ("break_off", "kind"),
    [
        (die, "api_error"),
        (fall_silent, "timeout_error"),
        (tell_of_an_error, "api_error"),
        (mix_calls, "api_error"),
    ],
)
def test_a_stream_that_breaks_ends_with_one_error_event(
    gateway: RunningGateway, engine: ScriptedEngine, break_off: Callable[..., Any], kind: str
) -> None:
    engine.script = break_off
    *before, last = events_of(post(gateway, stream=True).text)
    assert before[0]["type"] == "message_start"
    assert last["type"] == "error" and last["error"].keys() == {"type", "message"}
    assert last["error"]["type"] == kind and "secret" not in last["error"]["message"]
    assert not {"message_stop", "message_delta", "error"} & {event["type"] for event in before}


IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x"}}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "developer", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "of type 'image' are not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "of type 'document'"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "of type 'tool_use'"),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "thinking"}]}]},
            "of type 'thinking'",
        ),
        ({"messages": [USER, {"role": "assistant", "content": "The"}]}, "messages[1].role"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking of type 'enabled'"),
        (
            {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
            "'clear_tool_uses_20250919'",
        ),
        ({"thread": {"type": "continue", "previous_message_id": "msg_1"}}, "thread"),
        ({"output_config": {"effort": "extreme"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "Tools of type 'web_search_20250305'",
        ),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
        ({"speed": "fast"}, "speed"),
        ({"container": "x"}, "container"),
        ({"stream": 1}, "stream"),
        ({"n": 2}, "n"),
    ],
)
def test_what_is_wrong_or_not_offered_is_refused_by_name(
    gateway: RunningGateway, engine: ScriptedEngine, fields: dict[str, Any], told: str
) -> None:
    answer = post(gateway, **fields)
    assert answer.status_code == 400
    assert answer.json().keys() == {"type", "error"} and answer.json()["type"] == "error"
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and told in error["message"]
    assert engine.received == []


def test_errors_before_the_answer_have_anthropics_shape_and_an_id(
    gateway: RunningGateway, engine: ScriptedEngine
) -> None:
    async def refuse(connection: Connection) -> None:
        error = {
            "message": "too long",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context",
        }
        await connection.json({"error": error}, "400 Bad Request")

    async def break_down(connection: Connection) -> None:
        await connection.json(
            {"error": {"message": "x", "type": "server_error"}}, "500 Internal Server Error"
        )

    def error(**fields: Any) -> tuple[int, str, str]:
        answer = post(gateway, **fields)
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
        return answer.status_code, answer.json()["error"]["type"], answer.json()["error"]["message"]

    assert error(model="nope")[:2] == (404, "not_found_error")
    engine.script = refuse
    assert error() == error(stream=True) == (400, "invalid_request_error", "messages: too long")
    engine.script = break_down
    assert error(stream=True)[:2] == (502, "api_error")


def test_tokens_are_counted_by_the_engine(gateway: RunningGateway, engine: ScriptedEngine) -> None:
    async def count(connection: Connection) -> None:
        await connection.json({"count": 12, "max_model_len": 2048, "tokens": [1] * 12})

    engine.script = count
    path = "/v1/messages/count_tokens"
    answer = post(gateway, path, system="Be brief.", tools=[TOOL])
    assert answer.json() == {"input_tokens": 12}
    asked = {"model": "m", "messages": [{"role": "system", "content": "Be brief."}, USER]}
    assert engine.received[-1].path == "/tokenize"
    tools = {"tools": [{"type": "function", "function": FUNCTION}]}
    assert engine.received[-1].body == asked | tools
    post(gateway, path, system="Be brief.", tools=[TOOL], tool_choice={"type": "none"})
    assert engine.received[-1].body == asked | tools | {"tool_choice": "none"}
    assert post(gateway, path, max_tokens=5).json()["error"]["message"].startswith("Unknown parameter")


def test_a_key_may_come_as_anthropics_clients_send_it(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    secret, _ = create_key(gateway.db, "main", requests_per_minute=100)
    other, _ = create_key(gateway.db, "other")
    gateway.add_engine("m")
    wait_until(lambda: gateway.chat().status_code == 401, "the key is noticed")

    def ask(path: str, **headers: str) -> httpx2.Response:
        body = {"model": "m", "messages": [USER], "max_tokens": 5}
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return gateway.client.post(path, json=body, headers=names)

    for path in ("/v1/messages", "/v1/chat/completions"):
        assert ask(path, x_api_key=secret).status_code == 200
        assert ask(path, authorization=f"Bearer {secret}").status_code == 200
        assert ask(path, x_api_key=secret, authorization=f"Bearer {secret}").status_code == 200
        assert ask(path, x_api_key=secret, authorization=f"Bearer {other}").status_code == 401
        assert ask(path, x_api_key=secret, authorization=f"Basic {secret}").status_code == 401
        assert ask(path, x_api_key="el-wrong").status_code == 401
        assert ask(path).status_code == 401
    refused = ask("/v1/messages", x_api_key="el-wrong").json()
    assert refused["type"] == "error" and refused["error"]["type"] == "authentication_error"
    assert ask("/v1/messages", x_api_key=secret).headers["x-ratelimit-limit-requests"] == "100"

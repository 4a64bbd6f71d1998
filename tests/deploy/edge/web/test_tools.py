"""JSON schemas and tools in the page, with the real SmolLM2 in a real browser."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.deploy.edge.web.page_server import FaultyServer
from tests.deploy.edge.web.test_page import script
from tests.support.serve.browser import IN_A_BROWSER, Driver

pytestmark = IN_A_BROWSER

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 1, "maximum": 120},
        "eyes": {"enum": ["blue", "brown"]},
    },
    "required": ["name", "age", "eyes"],
    "additionalProperties": False,
}
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}},
    "required": ["city"],
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": name, "description": f"The {name} of a city", "parameters": CITY},
    }
    for name in ("weather", "time")
]
ASK = {"messages": [{"role": "user", "content": "What is the weather in Rome?"}], "temperature": 0}


def schema(value: dict[str, Any], *, strict: bool = True) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "value", "schema": value, "strict": strict}}


@pytest.fixture(scope="module")
def page(driver: Driver, smollm2_site: Path) -> Iterator[Driver]:
    """A page that the model is loaded in, as `client`."""
    server = FaultyServer(smollm2_site)
    with server.running():
        driver.get(server.url + "blank.html")
        load = 'const {EverlearnWeb} = await import("/everlearn_web/index.js"); window.client = await EverlearnWeb.load("./", {threads: 1});'
        assert script(driver, load) is None
    yield driver


def create(page: Driver, **request: Any) -> Any:
    return script(page, f"return client.chat.completions.create({json.dumps(ASK | request)})")


def streamed(page: Driver, **request: Any) -> list[dict[str, Any]]:
    asked = json.dumps(ASK | request | {"stream": True})
    body = f"const chunks = []; for await (const chunk of await client.chat.completions.create({asked})) chunks.push(chunk); return chunks;"
    return script(page, body)


def test_an_answer_keeps_to_its_schema_at_any_temperature(page: Driver) -> None:
    check = Draft202012Validator(PERSON)
    said = set[str]()
    for seed in range(2):
        answer = create(
            page, response_format=schema(PERSON), temperature=1.5, top_p=1, seed=seed, max_tokens=60
        )
        choice = answer["choices"][0]
        assert choice["finish_reason"] == "stop" and check.is_valid(json.loads(choice["message"]["content"]))
        said.add(choice["message"]["content"])
    assert len(said) > 1
    cut = create(page, response_format=schema(PERSON), max_tokens=6)["choices"][0]
    assert cut["finish_reason"] == "length" and cut["message"]["content"].startswith('{"na')
    free = create(page, response_format={"type": "json_object"}, temperature=1.5, seed=1, max_tokens=6)
    assert free["choices"][0]["message"]["content"].startswith("{")
    short = create(page, response_format=schema({"type": "object", "additionalProperties": False}))
    assert short["choices"][0]["message"]["content"] == "{}" and short["usage"]["completion_tokens"] <= 2


def test_a_tool_is_called_whole_and_streamed(page: Driver) -> None:
    required = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 80}
    choice = create(page, **required)["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert call["function"]["name"] in ("weather", "time") and call["type"] == "function"
    assert Draft202012Validator(CITY).is_valid(json.loads(call["function"]["arguments"]))

    named = {"type": "function", "function": {"name": "time"}}
    chunks = streamed(page, tools=TOOLS, tool_choice=named, max_tokens=80)
    parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert len(parts) > 2 and [part["index"] for part in parts] == [0] * len(parts)
    assert parts[0]["function"] == {"name": "time", "arguments": ""} and parts[0]["id"].startswith("call_")
    said = json.loads("".join(part["function"]["arguments"] for part in parts))
    assert Draft202012Validator(CITY).is_valid(said)
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"

    cut = create(page, tools=TOOLS[:1], tool_choice="required", max_tokens=5)["choices"][0]
    assert cut["finish_reason"] == "length" and cut["message"]["content"] == ""


def test_text_may_stand_before_calls_and_results_are_read(page: Driver) -> None:
    plain, none = (
        create(page, **said, max_tokens=3) for said in ({}, {"tools": TOOLS, "tool_choice": "none"})
    )
    assert none["choices"][0]["message"] == plain["choices"][0]["message"]
    assert none["usage"] == plain["usage"]  # the model is told of no tool
    chosen = create(page, tools=TOOLS[:1], max_tokens=4)
    assert chosen["choices"][0]["message"]["content"] or chosen["choices"][0]["message"]["tool_calls"]
    assert chosen["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 60
    history = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]},
        {"role": "tool", "tool_call_id": "c", "content": "sunny"},
    ]  # fmt: skip
    answer = create(page, messages=history, tools=TOOLS, tool_choice="none", max_tokens=3)
    assert answer["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 20
    assert answer["choices"][0]["message"]["content"]


def test_what_cannot_be_done_is_refused_by_name(page: Driver) -> None:
    wrong_tool = {"type": "function", "function": {"name": "a b"}}
    listed = {"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}
    unique = {"type": "array", "items": {"const": 1}, "uniqueItems": True, "maxItems": 1}
    for request, code, why in (
        ({"response_format": schema(unique)}, "unsupported", "schema.uniqueItems"),
        ({"response_format": schema({"type": "text"})}, "invalid_input", "schema.type"),
        ({"response_format": {"type": "json_schema"}}, "invalid_input", "json_schema.schema"),
        ({"response_format": {"type": "xml"}}, "invalid_input", "response_format.type"),
        ({"tools": [wrong_tool]}, "invalid_input", "tools[0].function.name"),
        ({"tools": [listed]}, "invalid_input", "tools[0].function.parameters.type"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "invalid_input", "name of their own"),
        ({"tools": [], "tool_choice": "required"}, "invalid_input", "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "invalid_input", "tool_choice"),
        ({"tool_choice": "sometimes"}, "invalid_input", "tool_choice"),
    ):  # fmt: skip
        error = create(page, **request)["error"]
        assert error["code"] == code and why in error["message"], (request, error)
    left = create(page, response_format=schema(unique, strict=False), max_tokens=2)
    assert left["left_open"] == ["response_format.json_schema.schema.uniqueItems"]

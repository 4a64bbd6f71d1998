"""Tools and formats of the engine: what a grammar is made of clients' schemas, and what answers become under it."""

import json
import threading
import time
from contextlib import suppress
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest

from everlearn.errors import EverlearnError
from serve.engines.calls import whole_calls
from serve.engines.onnx.answers import join
from serve.engines.onnx.decoding.generation import Piece, advance
from serve.engines.onnx.decoding.softmax import Softmax
from serve.engines.onnx.requests import RequestReader
from serve.protocol.chat import ChatRequest
from serve.protocol.parsing import parse
from tests.serve.engines.onnx.test_engine_http import WEATHER, ask, events

NODE = {
    "type": "object",
    "properties": {"value": {"$ref": "#/$defs/Value"}, "next": {"$ref": "#"}},
    "required": ["value"],
    "$defs": {"Value": {"type": "integer", "minimum": 1, "maximum": 3}},
}


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    given = {} if parameters is None else {"parameters": parameters}
    return {"type": "function", "function": {"name": name, **given, **more}}


def answered(reader: RequestReader, text: str, **body: Any) -> Piece:
    """What an answer becomes in which the model wants to say `text`, under the grammar of the request."""
    messages = [{"role": "user", "content": "Hi"}]
    request = parse(ChatRequest, json.dumps({"model": "m", "messages": messages, **body}).encode())
    [generation] = reader.chat(request)
    softmax = Softmax(reader.config.vocab_size)
    pieces: list[Piece] = []
    for token in [*reader.codec.encode_literal(text), *[reader.config.eos_ids[0]] * 40]:
        logits = np.zeros((1, reader.config.vocab_size), np.float32)
        logits[0, [reader.config.eos_ids[0], token]] = 10, 20
        pieces += advance([generation], logits, softmax)
        if pieces[-1].last:
            break
    return join(pieces)


def said(piece: Piece) -> tuple[str, list[tuple[str, str]], str | None]:
    calls = [call["function"] for call in whole_calls(piece.calls)]
    return piece.text, [(call["name"], call["arguments"]) for call in calls], piece.finish


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


# -------------------------------------------------------------------------------------------- schemas of their own


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "add"}}])
def test_references_resolve_within_a_tools_own_schema(reader: RequestReader, choice: Any) -> None:
    options = {"tools": [WEATHER, tool("add", NODE)], "tool_choice": choice}
    arguments = '{"value": 1, "next": {"value": 2, "next": {"value": 3}}}'
    assert said(answered(reader, call("add", arguments), **options)) == (
        "",
        [("add", arguments)],
        "tool_calls",
    )
    [(_, wrong)] = said(answered(reader, call("add", '{"value": 7}'), **options))[1]
    assert json.loads(wrong)["value"] in (1, 2, 3)


def test_a_nested_pydantic_model_is_a_tool(engine: httpx.Client) -> None:
    from openai import pydantic_function_tool
    from pydantic import BaseModel, Field

    class Place(BaseModel):
        city: str = Field(max_length=10)

    class Trip(BaseModel):
        start: Place
        end: Place

    body = ask("A trip from Rome to Oslo", tools=[pydantic_function_tool(Trip)], tool_choice="required")
    answer = engine.post("/v1/chat/completions", json=body | {"max_tokens": 90, "parallel_tool_calls": False})
    [made] = answer.json()["choices"][0]["message"]["tool_calls"]
    assert Trip.model_validate_json(made["function"]["arguments"])


def test_objects_have_the_properties_that_are_given_and_no_others(reader: RequestReader) -> None:
    plain = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = call("f", '{"a": 1, "b": 2}')
    [(_, arguments)] = said(answered(reader, wanted, tools=[tool("f", plain)]))[1]
    assert json.loads(arguments).keys() == {"a"}
    free = plain | {"additionalProperties": True}
    assert said(answered(reader, wanted, tools=[tool("f", free)]))[1] == [("f", '{"a": 1, "b": 2}')]
    for strict, keys in ((True, {"a"}), (False, {"a", "b"})):
        shape = {"name": "x", "schema": plain, "strict": strict}
        options = {"response_format": {"type": "json_schema", "json_schema": shape}}
        assert json.loads(answered(reader, '{"a": 1, "b": 2}', **options).text).keys() == keys


@pytest.mark.parametrize(
    "schema",
    [{"type": "object"}, {"type": "object", "additionalProperties": {"type": "integer"}}],
)
@pytest.mark.parametrize("key", ["a", "über", ""])
def test_no_object_has_a_key_twice(reader: RequestReader, schema: Any, key: str) -> None:
    wanted = f'{{"{key}": 1, "{key}": 2}}'
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    made = [
        answered(reader, wanted, response_format=shape).text,
        answered(reader, wanted, response_format=shape, tools=[WEATHER]).text,
        said(answered(reader, call("f", wanted), tools=[tool("f", schema)]))[1][0][1],
    ]
    for text in made:
        assert text.startswith(f'{{"{key}": 1, "{key}'), text
        assert not text.startswith(f'{{"{key}": 1, "{key}"'), text
    shape["json_schema"]["schema"] = {"type": "array", "items": schema}
    twice = f'[{{"{key}": 1}}, {{"{key}": 1}}]'
    assert answered(reader, twice, response_format=shape).text == twice


def test_schemas_that_describe_one_object_together_do_not_exclude_each_others_properties(
    reader: RequestReader,
) -> None:
    base = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    joined = {
        "$defs": {"Base": base},
        "allOf": [{"$ref": "#/$defs/Base"}, {"properties": {"b": {"const": 2}}}],
    }
    assert said(answered(reader, call("f", '{"a": 1, "b": 2}'), tools=[tool("f", joined)]))[1] == [
        ("f", '{"a": 1, "b": 2}')
    ]


OPEN = {
    "pattern": {"type": "string", "pattern": "^(?=a)b"},
    "uniqueItems": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "^a"}},
    "format": {"type": "string", "format": "path"},
    "not": {"not": {"type": "string"}},
    "minimum": {"type": "integer", "minimum": -(2**80)},
    "multipleOf": {"type": "integer", "multipleOf": 999_983},
    "enum": {"enum": [10**30]},
}


@pytest.mark.parametrize("keyword", OPEN)
def test_what_a_grammar_cannot_enforce_is_left_open_and_named_or_refused_where_strict(
    engine: httpx.Client, keyword: str
) -> None:
    schema = {"type": "object", "properties": {"a": OPEN[keyword]}, "required": ["a"]}
    path = f"properties.a.{keyword}"
    body = ask("Hi", tools=[tool("f", schema)], max_tokens=2)
    answer = engine.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-everlearn-left-open"] == f"tools[0].function.parameters.{path}"
    body["tools"] = [tool("g"), tool("f", schema, strict=True)]
    refused = engine.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == f"tools[1].function.parameters.{path}"
    for strict, status in ((False, 200), (True, 400)):
        shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": strict}}
        answer = engine.post("/v1/chat/completions", json=ask("Hi", response_format=shape, max_tokens=2))
        assert answer.status_code == status
        assert path in (answer.headers.get("x-everlearn-left-open") or answer.json()["error"]["param"])


@pytest.mark.parametrize(
    "broken",
    [
        {"type": "strin"},
        {"type": 5},
        {"properties": 5},
        {"pattern": "("},
        {"$ref": "#/$defs/A"},
        {"multipleOf": 0},
        {"maxLength": 2**70},
        {"type": "string", "enum": [1]},
        {"type": "object", "required": ["b"], "additionalProperties": False},
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_schema_that_means_nothing_is_refused(reader: RequestReader, broken: Any, strict: bool) -> None:
    schema = {"type": "object", "properties": {"a": broken}, "required": ["a"]}
    with pytest.raises(EverlearnError) as refused:
        answered(reader, "x", tools=[tool("f", schema, strict=strict)], tool_choice="required")
    assert refused.value.status == 400
    assert (refused.value.param or "").startswith("tools")


def test_a_schema_that_nothing_can_satisfy_is_refused(reader: RequestReader) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}
    with pytest.raises(EverlearnError, match="admits no answer"):
        answered(reader, "x", response_format=shape)


def test_a_thousand_slow_patterns_are_refused_in_time(reader: RequestReader) -> None:
    slow = {
        f"p{n}": {
            "type": "string",
            "pattern": f"^(a|b)*a(a|b){{{n}}}c(.*d.{{{n}}}){{3}}$",
            "maxLength": 500 + n,
        }
        for n in range(1200)
    }
    began = time.monotonic()
    with suppress(EverlearnError):
        answered(reader, "x", tools=[tool("f", {"type": "object", "properties": slow})])
    assert time.monotonic() - began < 20


def test_numbers_beyond_what_a_grammar_counts_to_are_no_failure(reader: RequestReader) -> None:
    for maximum in (2**63, 2**64, 10**30, 1e300, 10**400):
        schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": maximum}}}
        assert said(answered(reader, call("f", '{"a": 5}'), tools=[tool("f", schema)]))[1] == [
            ("f", '{"a": 5}')
        ]


# ------------------------------------------------------------------------------------------ text, calls, cut calls


@pytest.mark.parametrize(
    "text", ["<div>Hello</div>", "<think>\nWell.\n</think>\n\nHello", "<", "a < b", "<|im_start|>", "<tool_"]
)
def test_text_may_begin_with_anything_but_a_call(reader: RequestReader, text: str) -> None:
    assert said(answered(reader, text, tools=[WEATHER])) == (text, [], "stop")


def test_text_may_stand_before_a_call_and_a_call_ends_the_text(reader: RequestReader) -> None:
    arguments = '{"city": "Oslo"}'
    piece = answered(reader, f"I look it up.\n{call('weather', arguments)} And then", tools=[WEATHER])
    assert said(piece) == ("I look it up.\n", [("weather", arguments)], "tool_calls")


def test_only_offered_functions_are_called_wherever_a_call_stands(reader: RequestReader) -> None:
    for text in (
        call("launch", "{}"),
        f"Now: {call('launch', '{}')}",
        "x <tool_call>\nnot json\n</tool_call> y",
    ):
        piece = answered(reader, text, tools=[WEATHER], max_tokens=60)
        assert "<tool_call>" not in piece.text
        assert {name for name, _ in said(piece)[1]} <= {"weather"}


def test_an_answer_is_a_call_or_keeps_to_the_format(reader: RequestReader) -> None:
    shape = {
        "name": "x",
        "schema": {"type": "object", "properties": {"a": {"type": "integer"}}},
        "strict": True,
    }
    options: Any = {"tools": [WEATHER], "response_format": {"type": "json_schema", "json_schema": shape}}
    assert said(answered(reader, '{"a": 1}', **options)) == ('{"a": 1}', [], "stop")
    calling = call("weather", '{"city": "Oslo"}')
    made = ("", [("weather", '{"city": "Oslo"}')], "tool_calls")
    assert said(answered(reader, calling, **options)) == made
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        assert said(answered(reader, calling, **options, tool_choice=choice)) == made
        assert said(answered(reader, '{"a": 1}', **options, tool_choice=choice, max_tokens=50))[0] == ""
    assert said(answered(reader, '{"a": 1}', **options, tool_choice="none")) == ('{"a": 1}', [], "stop")


@pytest.mark.parametrize(
    "options", [{"max_tokens": n} for n in (1, 2, 8, 18, 24)] + [{"stop": ["\n", "}"]}], ids=str
)
@pytest.mark.parametrize("choice", ["required", "auto"])
def test_streamed_and_whole_answers_agree_and_show_no_framing(
    engine: httpx.Client, options: dict[str, Any], choice: str
) -> None:
    tools: Any = {"tools": [WEATHER], "tool_choice": choice, "parallel_tool_calls": False}
    body = ask("Weather in Oslo?", **tools, max_tokens=60) | options
    whole = engine.post("/v1/chat/completions", json=body).json()["choices"][0]
    text, arguments, names, finish = "", "", [], None
    for part in events(engine, body):
        choice_of = part["choices"][0]
        text += choice_of["delta"].get("content") or ""
        for made in choice_of["delta"].get("tool_calls", []):
            names += [made["function"]["name"]] if "name" in made["function"] else []
            arguments += made["function"]["arguments"]
        finish = choice_of["finish_reason"]
    calls = [made["function"] for made in whole["message"].get("tool_calls", [])]
    assert text == (whole["message"]["content"] or "")
    assert (names, arguments) == ([c["name"] for c in calls], "".join(c["arguments"] for c in calls))
    assert finish == whole["finish_reason"]
    assert "tool_call" not in text
    if choice == "required":
        assert text == ""
        assert finish == ("length" if options.get("max_tokens", 60) < 25 else "tool_calls")


# --------------------------------------------------------------------------------------------- earlier calls


ARGUMENTS = {
    "half a character": '{"city": "\\ud83d"}',
    "deep": "[" * 3000 + "]" * 3000,
    "very deep": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "a long number": "1" * 5000,
    "no number": '{"a": NaN, "b": 1e999}',
    "no JSON": "{city: Oslo",
    "nothing": "",
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_strange_arguments_of_earlier_calls_are_no_failure(
    engine: httpx.Client, arguments: str, path: str
) -> None:
    made = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS[arguments]}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
    ]
    body = {"model": "m", "messages": messages}
    for more in ({}, {"max_tokens": 1, "stream": True}) if path != "/tokenize" else ({},):
        answer = engine.post(path, json=body | ({"max_tokens": 1} | more if path != "/tokenize" else {}))
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert "context" in answer.text


# ---------------------------------------------------------------------------------------- schemas made to hurt


def doubled(depth: int) -> dict[str, Any]:
    both = {f"A{n}": {"anyOf": [{"$ref": f"#/$defs/A{n + 1}"}, {"type": "object", "properties": {
        "x": {"$ref": f"#/$defs/A{n + 1}"}}}]} for n in range(depth)}  # fmt: skip
    return {
        "$defs": both | {f"A{depth}": {"type": "integer"}},
        "allOf": [{"$ref": f"#/$defs/A{n}"} for n in range(3)],
    }


HURTING: dict[str, Any] = {
    "itself": {"$ref": "#"},
    "a circle": {"$defs": {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}, "$ref": "#/$defs/A"},
    "without end": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    "twice itself": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}, {"type": "integer"}]},
    "doubled": doubled(25),
    "large numbers": {"type": "integer", "minimum": -(2**63), "maximum": 2**64},
    "many steps": {"type": "integer", "multipleOf": 999_983},
    "steps of steps": {"allOf": [{"multipleOf": 7919}, {"multipleOf": 7907}], "type": "integer"},
    "nested repeats": {"type": "string", "pattern": "((a{0,1000}){0,1000}){0,1000}b"},
    "backtracking": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"},
    "far ahead": {"type": "string", "pattern": "(.*a.{20}){10}"},
    "far ahead, bounded": {"type": "string", "pattern": "(.*a.{200}b.{200})", "maxLength": 3000},
    "long": {"type": "string", "minLength": 10**6, "maxLength": 10**9},
    "many": {"type": "array", "minItems": 10**6, "items": {"type": "array", "minItems": 10**6}},
    "wide": {"type": "object", "properties": {f"name_{n}": {"type": "string"} for n in range(1000)}},
}


def test_schemas_made_to_hurt_are_answered_or_refused_while_others_go_on(engine: httpx.Client) -> None:
    with httpx.Client(base_url=engine.base_url, timeout=120) as other:
        body = ask("Count to a million.", max_tokens=4000, stream=True, logit_bias={"2": -100})
        with other.stream("POST", "/v1/chat/completions", json=body) as steady:
            arrived: list[float] = []
            lines = steady.iter_lines()
            next(lines)

            def read() -> None:
                with suppress(httpx.HTTPError):
                    arrived.extend(time.monotonic() for _ in lines)

            reading = threading.Thread(target=read, daemon=True)
            reading.start()
            took_s = {}
            for name, schema in HURTING.items():
                shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
                began = time.monotonic()
                answer = engine.post(
                    "/v1/chat/completions", json=ask("Hi", response_format=shape, max_tokens=3)
                )
                took_s[name] = time.monotonic() - began
                assert answer.status_code in (200, 400), (name, answer.text)
            assert reading.is_alive(), "the steady stream ended too early to show anything"
            came = list(arrived)
    assert max(took_s.values()) < 10, took_s
    assert max(after - before for before, after in pairwise(came)) < 2

"""The allow-list: what is taken, what is refused, and by which name."""

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.errors import InvalidInput
from serve.protocol.body import MAX_MESSAGES, Body
from serve.protocol.chat import ChatRequest
from serve.protocol.completions import CompletionRequest
from serve.protocol.embeddings import EmbeddingRequest
from serve.protocol.parsing import encode, parse
from serve.protocol.responses import ResponsesRequest

USER = {"role": "user", "content": "hi"}
ITEMS = [
    USER,
    {
        "type": "function_call",
        "call_id": "c",
        "name": "f",
        "arguments": "{}",
        "id": "fc",
        "status": "completed",
    },
    {"type": "function_call_output", "call_id": "c", "output": "5"},
]
MODELS = (ChatRequest, CompletionRequest, EmbeddingRequest, ResponsesRequest)


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [USER]} | fields).encode()


def refused(body: bytes, model: type[Body] = ChatRequest) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        parse(model, body)
    return caught.value


def test_what_the_client_set_and_only_that_is_passed_on() -> None:
    sent = chat(
        temperature=0.5, stop="x", stream=True, stream_options={"include_usage": True}, max_tokens=None
    )
    passed = json.loads(encode(parse(ChatRequest, sent)))
    assert passed == {
        "model": "m", "messages": [USER], "temperature": 0.5, "stop": ["x"], "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_what_the_gateway_passes_on_parses_again_to_the_same() -> None:
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
    }
    first = parse(ChatRequest, chat(response_format=schema, logit_bias={"5": -100}, seed=-(2**63), n=2))
    assert parse(ChatRequest, encode(first)) == first


def test_labels_are_accepted_and_dropped() -> None:
    labels = {"user": "u", "metadata": {"a": "b"}, "safety_identifier": "s", "prompt_cache_key": "k"}
    body = chat(**labels, store=False)
    assert json.loads(encode(parse(ChatRequest, body))) == {"model": "m", "messages": [USER]}


def test_an_engine_hears_who_can_wait() -> None:
    assert json.loads(encode(parse(ChatRequest, chat(service_tier="flex"))))["service_tier"] == "flex"
    with pytest.raises(InvalidInput) as refused:
        parse(ChatRequest, chat(service_tier="priority"))
    assert refused.value.param == "service_tier"


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (chat(audio=None, functions=None, stop=None), ChatRequest),
        (chat(messages=[{"role": "assistant", "content": None, "refusal": None, "annotations": [], "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "a", "content": "5"}]), ChatRequest),
        (chat(messages=[{"role": "developer", "content": [{"type": "text", "text": "x"}]}, USER]), ChatRequest),
        (chat(response_format={"type": "grammar", "grammar": "start: /a+/"}), ChatRequest),
        (b'{"model":"m","prompt":[[1,2],[3]]}', CompletionRequest),
        (b'{"model":"m","prompt":["a","b"],"logprobs":5}', CompletionRequest),
        (b'{"model":"m","input":[1,2],"encoding_format":"base64"}', EmbeddingRequest),
        (json.dumps({"model": "m", "input": ITEMS}).encode(), ResponsesRequest),
    ],
)  # fmt: skip
def test_common_bodies_are_taken(body: bytes, model: type[Body]) -> None:
    parse(model, body)


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (ChatRequest, {"tools": []}),
        (ChatRequest, {"functions": [], "function_call": "none", "modalities": ["text"]}),
        (ChatRequest, {"top_logprobs": 0}),
        (CompletionRequest, {"echo": False, "best_of": 1, "suffix": ""}),
        (ResponsesRequest, {"top_logprobs": 0}),
    ],
)
def test_a_value_that_asks_for_nothing_is_taken_and_not_passed_on(
    model: type[Body], fields: dict[str, Any]
) -> None:
    plain = {"model": "m"} | {ChatRequest: {"messages": [USER]}, CompletionRequest: {"prompt": "x"}}.get(
        model,  # type: ignore[call-overload]
        {"input": "x"},
    )
    assert json.loads(encode(parse(model, json.dumps(plain | fields).encode()))) == plain


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (CompletionRequest, {"best_of": 2}),
        (CompletionRequest, {"suffix": "x"}),
        (CompletionRequest, {"best_of": True}),
        (CompletionRequest, {"suffix": []}),
        (ChatRequest, {"modalities": ["text", "audio"]}),
        (ResponsesRequest, {"top_logprobs": 2}),
    ],
)
def test_any_other_value_is_refused_by_name(model: type[Body], fields: dict[str, Any]) -> None:
    body = {"model": "m", "messages": [USER], "prompt": "x", "input": "x"}
    taken = {name: value for name, value in body.items() if name in model.model_fields}
    assert refused(json.dumps(taken | fields).encode(), model).param == next(iter(fields))


def test_both_names_of_the_limit_are_taken_where_they_agree() -> None:
    assert parse(ChatRequest, chat(max_tokens=5, max_completion_tokens=5)).max_new_tokens == 5


ANSWERED: dict[str, Any] = {
    "role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None, "function_call": None,
    "tool_calls": None, "reasoning": None, "never_heard_of": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "message",
    [
        ANSWERED,
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": ""},
    ],
)
def test_an_answer_of_nothing_is_history_like_any_other(message: dict[str, Any]) -> None:
    (parsed,) = parse(ChatRequest, chat(messages=[message])).messages
    assert parsed.model_dump(exclude_unset=True) == {"role": "assistant", "content": ""}


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_a_message_may_have_no_parts(role: str) -> None:
    (parsed,) = parse(ChatRequest, chat(messages=[{"role": role, "content": []}])).messages
    assert parsed.content == []


@pytest.mark.parametrize(
    "item",
    [
        {"type": None, "role": "user", "content": "x", "phase": None},
        {"type": "message", "role": "assistant", "id": "m", "status": "completed", "phase": None, "content": [
            {"type": "output_text", "text": "x", "annotations": [], "logprobs": [], "parsed": None}]},
        ITEMS[1] | {"namespace": None, "caller": None, "parsed_arguments": None},
        ITEMS[2] | {"caller": None, "name": None},
    ],
)  # fmt: skip
def test_null_in_a_piece_of_history_is_not_given(item: dict[str, Any]) -> None:
    parse(ResponsesRequest, json.dumps({"model": "m", "input": [item]}).encode())


def test_null_for_an_unknown_parameter_is_still_unknown() -> None:
    assert refused(chat(never_heard_of=None)).param == "never_heard_of"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *(({"max_tokens": value}, "max_tokens") for value in (-1, 0, 2**63, "5", 1e9, 1.5, True)),
        *(({"n": value}, "n") for value in (0, 10**6, "2")),
        *(({"temperature": value}, "temperature") for value in (-0.1, 2.1, "1")),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 2}, "top_p"),
        ({"stop": ["a"] * 10_000}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stop": ""}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"logit_bias": {"fifty": 1}}, "logit_bias.fifty"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {str(i): 0 for i in range(301)}}, "logit_bias"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"store": True}, "store"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254"}}]}]},
         "messages[0].content[0].type"),
        ({"messages": [USER] * (MAX_MESSAGES + 1)}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": "y" * 200_000}}}]},
         "tools[0].function.parameters"),
        ({"tools": [{"type": "code_interpreter"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}],
          "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}, "response_format.json_schema.schema"),
        ({"model": "x" * 10_000}, "model"),
    ],
)  # fmt: skip
def test_a_flaw_is_refused_by_the_path_of_its_field(fields: dict[str, Any], param: str) -> None:
    assert refused(chat(**fields)).param == param


@pytest.mark.parametrize(
    "name",
    [
        "prompt_embeds", "chat_template", "chat_template_kwargs", "lora_request", "api_base", "extra_headers", "audio",
        "modalities", "prediction", "web_search_options", "functions", "function_call", "reasoning_effort",
    ],
)  # fmt: skip
def test_what_is_not_offered_is_refused_by_name(name: str) -> None:
    error = refused(chat(**{name: {"a": 1}}))
    assert error.param == name
    assert name in error.message


def test_an_unknown_name_brings_the_nearest_known_one() -> None:
    assert "temperature" in refused(chat(temprature=1)).message


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"{} {}", b"\xef\xbb\xbf{}", b'{"model":"m","model":"m"}',
        b'{"model":NaN}', b'{"model":Infinity}', b'{"model":-Infinity}', b'{"model":"\\ud800"}', b'{"model":"\xff"}',
        b'{"model":"\xed\xa0\x80"}', b'{"model":"m",}', b"{'model':'m'}", b'{"model":' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_what_is_not_json_is_refused(body: bytes) -> None:
    refused(body)


def test_numbers_beyond_floats_are_refused_where_they_would_pass_unread() -> None:
    schema = b'{"type":"json_schema","json_schema":{"name":"n","schema":{"maximum":1e999}}}'
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"response_format":' + schema + b"}"
    assert refused(body).param == "response_format.json_schema.schema"


@pytest.mark.parametrize(("depth", "deep"), [(62, False), (64, True), (1000, True), (100_000, True)])
def test_nesting_is_bounded(depth: int, deep: bool) -> None:
    body = b'{"unknown":' + b"[" * depth + b"]" * depth + b"}"
    message = refused(body).message
    assert ("nested" in message or "more than" in message) == deep


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"a":' + b"[" * 4_000_000 + b"]" * 4_000_000 + b"}", id="depth"),
        pytest.param(b"[" + b"{}," * 2_600_000 + b"{}]", id="objects"),
        pytest.param(b'{"messages":[' + b'{"role":"user","content":"x"},' * 99_999 + b"1]}", id="messages"),
        pytest.param(b'{"' + b"k" * 1_000_000 + b'":1}', id="long key"),
        pytest.param(b'{"a":"' + b'\\",' * 2_600_000 + b'"}', id="escaped quotes"),
        pytest.param(b"{" + b",".join(b'"%d":1' % i for i in range(700_000)) + b"}", id="keys"),
        pytest.param(b'{"model":"m","prompt":[' + b"1," * 3_900_000 + b"1]}", id="numbers"),
        pytest.param(b"]" * 8_000_000 + b"[" * 2000, id="closing"),
        pytest.param(b'"' + b"[]" * 4_000_000, id="open string"),
    ],
)
def test_hostile_eight_megabytes_cost_less_than_reading_them_well(body: bytes) -> None:
    """A ratio to one plain pass of this machine's own JSON parser over a good body of that size."""
    good = b'{"a":"' + b"lorem, ipsum " * 615_000 + b'"}'
    began = time.process_time()
    for _ in range(3):
        json.loads(good)
    pass_s = (time.process_time() - began) / 3
    began = time.process_time()
    refused(body)
    assert time.process_time() - began < 10 * pass_s


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(MODELS), st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(model: type[Body], body: bytes) -> None:
    try:
        parse(model, body)
    except InvalidInput as error:
        assert error.message


@settings(max_examples=400, deadline=None)
@given(data=st.data(), model=st.sampled_from(MODELS))
def test_any_values_under_known_names_are_parsed_or_refused(data: st.DataObject, model: type[Body]) -> None:
    names = [field.alias or name for name, field in model.model_fields.items()]
    good: dict[str, Any] = {"model": "m", "messages": [USER], "prompt": "x", "input": "x"}
    body = {name: good[name] for name in names if name in good}
    body |= data.draw(st.dictionaries(st.sampled_from(names), json_values, max_size=4))
    try:
        parsed = parse(model, json.dumps(body).encode())
    except InvalidInput as error:
        assert error.param is None or error.param.split(".")[0].split("[")[0] in {*names, ""}
    else:
        assert parse(model, encode(parsed)) == parse(model, encode(parse(model, encode(parsed))))

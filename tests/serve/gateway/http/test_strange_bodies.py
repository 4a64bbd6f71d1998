"""Strange but valid JSON on its way through the gateway, of every API: taken or refused by name, never a failure."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from everlearn.errors import EverlearnError
from everlearn.settings import ServeSettings
from serve.batches.lines import check
from serve.gateway.formats import messages, responses
from serve.gateway.routing.work import Work, generation
from serve.protocol.chat import ChatRequest
from serve.protocol.completions import CompletionRequest
from serve.protocol.embeddings import EmbeddingRequest
from serve.protocol.messages import CountTokensRequest, MessagesRequest
from serve.protocol.parsing import encode, parse
from serve.protocol.responses import ResponsesRequest
from serve.protocol.tokens import DetokenizeRequest, TokenizeRequest
from tests.support.serve.strange import ASKED, BODIES, FIELDS, NUMBERS, SCHEMAS, TEXTS, VALUES

MESSAGE = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
RESPONSE = {"model": "m", "input": "Hi"}


def used(input: Any) -> list[Any]:
    call = {"type": "tool_use", "id": "c", "name": "f", "input": input}
    return [
        MESSAGE["messages"][0],
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": "ok"},
    ]


ANTHROPIC = st.one_of(
    st.builds(lambda field, value: {**MESSAGE, field: value}, FIELDS, VALUES),
    st.builds(lambda input: {**MESSAGE, "messages": used({"a": input})}, VALUES),
    st.builds(lambda schema: {**MESSAGE, "tools": [{"name": "f", "input_schema": schema}]}, SCHEMAS),
)
OPEN_RESPONSES = st.one_of(
    st.builds(lambda field, value: {**RESPONSE, field: value}, FIELDS | st.just("input"), VALUES),
    st.builds(lambda text: {**RESPONSE, "input": [{"type": "function_call", "call_id": "c", "name": "f",
                                                   "arguments": text}]}, TEXTS),
    st.builds(lambda schema: {**RESPONSE, "tools": [{"type": "function", "name": "f", "parameters": schema}]}, SCHEMAS),
    st.builds(lambda schema: {**RESPONSE, "text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}},
              SCHEMAS),
)  # fmt: skip


def chat(body: bytes) -> Work:
    return generation("/v1/chat/completions", parse(ChatRequest, body))


def completion(body: bytes) -> Work:
    return generation("/v1/completions", parse(CompletionRequest, body))


def response(body: bytes) -> Work:
    wanted = parse(ResponsesRequest, body)
    json.dumps(responses.ResponseTranslator(wanted)._response("completed"))
    return generation("/v1/chat/completions", responses.to_chat(wanted))


def message(body: bytes) -> Work:
    return generation("/v1/chat/completions", messages.to_chat(parse(MessagesRequest, body)))


def counted(body: bytes) -> bytes:
    return encode(messages.to_tokenize(parse(CountTokensRequest, body)))


@given(
    case=st.one_of(
        st.tuples(st.sampled_from([chat, completion]), BODIES),
        st.tuples(st.just(response), OPEN_RESPONSES),
        st.tuples(st.sampled_from([message, counted]), ANTHROPIC),
        st.tuples(
            st.sampled_from(
                [lambda body, kind=kind: encode(parse(kind, body))
                 for kind in (EmbeddingRequest, TokenizeRequest, DetokenizeRequest)]
            ),
            st.builds(lambda value: {"model": "m", "input": value, "prompt": value, "tokens": value}, VALUES),
        ),
    )
)  # fmt: skip
@example((message, {**MESSAGE, "messages": used({"a": 10**4299})}))
@example((message, {**MESSAGE, "messages": used({"a": 1e308})}))
@settings(
    max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
def test_strange_json_is_taken_or_refused_by_name(case: Any) -> None:
    read, body = case
    try:
        read(json.dumps(body).encode())
    except EverlearnError as error:
        assert error.status == 400
        json.dumps(error.message).encode()


@given(body=BODIES, id=TEXTS | VALUES, number=NUMBERS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large,
                                                                  HealthCheck.function_scoped_fixture])  # fmt: skip
def test_a_strange_batch_is_counted_or_told_what_is_wrong(
    tmp_path: Path, body: Any, id: Any, number: Any
) -> None:
    line = {"custom_id": id, "method": "POST", "url": "/v1/chat/completions", "body": body}
    path = tmp_path / "batch.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in (line, {"custom_id": "x", "n": number}, body)))
    flaws = check(path, "/v1/chat/completions", None, ServeSettings())
    assert json.dumps(flaws)


@pytest.mark.parametrize("field", ["user", "model", "stop"])
def test_half_a_character_is_no_valid_json(field: str) -> None:
    with pytest.raises(EverlearnError, match="not valid JSON"):
        parse(ChatRequest, json.dumps(ASKED | {field: "\ud83d"}).encode())

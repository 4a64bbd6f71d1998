"""Real answers of both engines, whole and streamed, against the published schema of each API (tests/support/serve/schemas.py)."""

import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import pytest
from pydantic import BaseModel, Field

from tests.e2e.conftest import Served
from tests.support.serve import schemas
from tests.support.serve.supervised import Supervised

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

Json = dict[str, Any]

QUESTION: Json = {"role": "user", "content": "What is the capital of France?"}
ASKED: Json = {"messages": [QUESTION]}
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Json = {"type": "function", "function": {"name": "weather", "parameters": CITY, "strict": True}}
NAMED: Json = {"type": "function", "function": {"name": "weather"}}
JSON: Json = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY, "strict": True}}
CALLED: Json = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
}
TOOL_HISTORY: Json = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
}
CHAT: dict[str, Json] = {
    "text": ASKED,
    "cut": ASKED | {"max_tokens": 2},
    "stop": ASKED | {"stop": ["capital"]},
    "several": ASKED | {"n": 2, "temperature": 0.7, "seed": 1},
    "logprobs": ASKED | {"logprobs": True, "top_logprobs": 2},
    "logprobs alone": ASKED | {"logprobs": True},
    "penalties": ASKED | {"frequency_penalty": 1, "presence_penalty": 1, "logit_bias": {"50": -5}},
    "tools": ASKED | {"tools": [TOOL]},
    "required": ASKED | {"tools": [TOOL], "tool_choice": "required", "max_tokens": 40},
    "named": ASKED | {"tools": [TOOL], "tool_choice": NAMED, "max_tokens": 40},
    "call cut": ASKED | {"tools": [TOOL], "tool_choice": NAMED, "max_tokens": 6},
    "history": TOOL_HISTORY | {"tools": [TOOL], "tool_choice": "none"},
    "object": ASKED | {"response_format": {"type": "json_object"}},
    "schema": ASKED | {"response_format": JSON},
    "grammar": ASKED | {"response_format": {"type": "grammar", "grammar": 'start: "yes" | "no"'}},
}
COMPLETIONS: dict[str, Json] = {
    "text": {"prompt": "One, two,"},
    "tokens": {"prompt": [504, 28, 827, 28]},
    "several": {"prompt": ["One, two,", "A, B,"], "seed": 1},
    "logprobs": {"prompt": "One, two,", "logprobs": 2},
    "stop": {"prompt": "One, two,", "stop": ["four"]},
    "defaults": {"prompt": "One, two,", "echo": False, "best_of": 1, "suffix": ""},
}
RESPONSES: dict[str, Json] = {
    "text": {"input": "What is the capital of France?"},
    "cut": {"input": [QUESTION], "max_output_tokens": 2},
    "sampling": {"input": "Hello", "temperature": 0.5, "top_p": 0.9, "presence_penalty": 0.5, "metadata": {"a": "b"}},
    "labels": {"input": "Hello", "prompt_cache_key": "k", "safety_identifier": "s", "top_logprobs": 0},
    "named": {
        "input": "Weather in Rome?",
        "tools": [{"type": "function", "name": "weather", "parameters": CITY}],
        "tool_choice": {"type": "function", "name": "weather"},
        "max_output_tokens": 40,
    },
    "call cut": {
        "input": "Weather in Rome?",
        "tools": [{"type": "function", "name": "weather", "parameters": CITY, "strict": True}],
        "tool_choice": "required",
        "max_output_tokens": 6,
    },
    "schema": {"input": "A city?", "text": {"format": {"type": "json_schema", "name": "place", "schema": CITY}}},
    "object": {"input": "A city?", "text": {"format": {"type": "json_object"}}, "instructions": "Be brief."},
    "history": {
        "input": [
            QUESTION,
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}", "caller": None},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        ]
    },
}  # fmt: skip
WEATHER: Json = {"name": "weather", "input_schema": CITY, "strict": True, "eager_input_streaming": True}
MESSAGES: dict[str, Json] = {
    "text": ASKED,
    "cut": ASKED | {"max_tokens": 2},
    "stop": ASKED | {"stop_sequences": ["capital", "x"]},
    "tools": ASKED | {"tools": [WEATHER]},
    "any": ASKED | {"tools": [WEATHER], "tool_choice": {"type": "any"}, "max_tokens": 40},
    "named": ASKED | {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}, "max_tokens": 40},
    "format": ASKED | {"output_config": {"format": {"type": "json_schema", "schema": CITY}, "effort": "low"}},
    "hints": ASKED
    | {
        "thinking": {"type": "adaptive"},
        "thread": {"type": "create"},
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    },
    "system": {"messages": [QUESTION, {"role": "assistant", "content": []}, {"role": "system", "content": "Be brief."}]},
}  # fmt: skip
CASES = {"chat": CHAT, "completions": COMPLETIONS, "responses": RESPONSES, "messages": MESSAGES}
PATHS = {"chat": "/v1/chat/completions", "count_tokens": "/v1/messages/count_tokens"}
ALONE = {"chat": {"temperature": 0, "max_tokens": 12}, "completions": {"temperature": 0, "max_tokens": 6}}
LIMITS = ALONE | {"responses": {"max_output_tokens": 12}, "messages": {"max_tokens": 12}}
REFUSED = {
    "chat": ASKED | {"images": True},
    "completions": {"prompt": "x", "best_of": 3},
    "embeddings": {"input": [""] * 5000},
    "responses": {"input": "x", "background": True},
    "messages": ASKED | {"thinking": {"type": "enabled", "budget_tokens": 2000}},
    "count_tokens": {"messages": []},
}

EMBEDDINGS: dict[str, Json] = {
    "text": {"input": "a"},
    "texts": {"input": ["a", "b"], "encoding_format": "float"},
    "bytes": {"input": "a", "encoding_format": "base64"},
}

Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask(server: Supervised, key: str, model: str) -> Ask:
    def post(api: str, **fields: Any) -> httpx.Response:
        path = PATHS.get(api, f"/v1/{api}")
        body = {"model": model} | LIMITS.get(api, {}) | fields
        headers = {"authorization": f"Bearer {key}", "anthropic-version": "2023-06-01"}
        return httpx.post(server.url + path, json=body, headers=headers, timeout=60)

    return post


def test_there_are_enough_of_them() -> None:
    """Each case is asked of two engines, whole and streamed."""
    assert 2 * 2 * sum(map(len, CASES.values())) >= 60


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("api", CASES)
def test_every_answer_fits_its_schema(ask: Ask, model: str, api: str, stream: bool) -> None:
    flaws: dict[str, list[str]] = {}
    for case, fields in CASES[api].items():
        if stream and fields.get("stream") is None:
            fields = fields | {"stream": True}
        if stream and api == "chat":
            fields = fields | {"stream_options": {"include_usage": case != "text"}}
        answer = ask(api, **fields)
        if answer.status_code != 200:
            flaws[case] = [f"{answer.status_code} {answer.text}"]
        else:
            flaws[case] = schemas.streamed(api, answer.text) if stream else schemas.whole(api, answer.json())
    assert len(flaws) == len(CASES[api])
    assert not any(flaws.values()), json.dumps({case: told for case, told in flaws.items() if told}, indent=1)


@pytest.mark.parametrize("case", EMBEDDINGS)
def test_every_embedding_fits_its_schema(server: Supervised, key: str, case: str) -> None:
    body = {"model": "minilm"} | EMBEDDINGS[case]
    answer = httpx.post(f"{server.url}/v1/embeddings", json=body, headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    flaws = schemas.whole("embeddings", answer.json())
    if case == "bytes":  # the client's type is of what it has decoded
        flaws = [flaw for flaw in flaws if "data.0.embedding" not in flaw]
    assert flaws == []


def test_counts_and_refusals_fit_theirs(ask: Ask) -> None:
    counted = ask("count_tokens", messages=[QUESTION], tools=[WEATHER])
    assert schemas.whole("count_tokens", counted.json()) == []
    for api, fields in REFUSED.items():
        refused = ask(api, **fields)
        assert refused.status_code == 400, (api, refused.text)
        assert schemas.error(api, refused.json()) == []


def test_answers_go_back_as_the_clients_dump_them(
    served: Served, server: Supervised, key: str, model: str
) -> None:
    """With every key that an answer did not have as null, as `model_dump()` writes it."""
    tools: Any = [TOOL]
    asked: list[Any] = [QUESTION]
    one: Any = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    called = served.chat(asked, **one).choices[0].message
    asked += [called.model_dump(), {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": "5"}]
    asked += [served.chat(asked).choices[0].message.model_dump(), QUESTION]
    assert served.chat(asked).choices[0].finish_reason

    items: list[Any] = [QUESTION]
    functions: Any = [{"type": "function", **TOOL["function"]}]
    for choice in ("required", "none"):
        response = served.client.responses.create(
            model=model, input=items, tools=functions, tool_choice=choice, max_output_tokens=40
        )
        items += [item.model_dump() for item in response.output]
        items += [
            {"type": "function_call_output", "call_id": item.call_id, "output": "5"}
            for item in response.output
            if item.type == "function_call"
        ]
    assert served.client.responses.create(model=model, input=[*items, QUESTION], max_output_tokens=4).output

    with anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0) as client:
        turns: list[Any] = [QUESTION]
        weather: Any = [WEATHER]
        for choice in ("any", "none"):
            message = client.messages.create(
                model=model, messages=turns, tools=weather, tool_choice={"type": choice}, max_tokens=40
            )  # type: ignore[call-overload]
            results = [
                {"type": "tool_result", "tool_use_id": block.id, "content": "5"}
                for block in message.content
                if block.type == "tool_use"
            ]
            said = [block.model_dump() for block in message.content]
            turns += [{"role": "assistant", "content": said}, {"role": "user", "content": results or "And?"}]
        assert client.messages.create(model=model, messages=turns, max_tokens=4).usage.output_tokens


def test_anthropics_client_parses_an_answer_of_a_schema(server: Supervised, key: str, model: str) -> None:
    class Place(BaseModel):
        city: str = Field(max_length=12)

    with anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0) as client:
        messages: Any = [QUESTION]
        parsed = client.messages.parse(model=model, messages=messages, output_format=Place, max_tokens=40)
    assert isinstance(parsed.parsed_output, Place)

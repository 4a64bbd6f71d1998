"""Anthropic's messages API on the real model: whole and streamed answers agree, and tools are called."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.serve.anthropic_events import events_of, message_of
from tests.support.serve.supervised import Supervised

pytestmark = pytest.mark.slow

QUESTION = "What is the capital of France?"
WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask(server: Supervised, key: str, model: str) -> Ask:
    def post(path: str = "/v1/messages", **fields: Any) -> httpx.Response:
        limits = {"max_tokens": 24, "temperature": 0} if path == "/v1/messages" else {}
        body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], **limits, **fields}
        headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
        answer = httpx.post(server.url + path, json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer

    return post


def without_id(message: dict[str, Any]) -> dict[str, Any]:
    """What must be the same each time: not the ids, and not how much of the prompt was in the cache."""
    counted = message["usage"]
    blocks = [{**block, "id": None} if "id" in block else block for block in message["content"]]
    prompt = counted["input_tokens"] + counted["cache_read_input_tokens"]
    return message | {"id": None, "content": blocks, "usage": (prompt, counted["output_tokens"])}


def test_a_streamed_answer_builds_up_to_the_whole_one(ask: Ask) -> None:
    whole = ask(system="Answer in one sentence.").json()
    events = events_of(ask(system="Answer in one sentence.", stream=True).text)
    assert without_id(message_of(events)) == without_id(whole)
    assert "Paris" in whole["content"][0]["text"] and whole["stop_reason"] == "end_turn"
    assert sum(event["type"] == "content_block_delta" for event in events) > 3


def test_an_answer_that_is_cut_says_so(ask: Ask) -> None:
    for stream in (False, True):
        answer = ask(max_tokens=2, stream=stream)
        message = message_of(events_of(answer.text)) if stream else answer.json()
        assert (message["stop_reason"], message["usage"]["output_tokens"]) == ("max_tokens", 2)


def test_an_answer_that_a_sequence_ends_says_which(ask: Ask) -> None:
    for stream in (False, True):
        answer = ask(stop_sequences=["zzz", "of France"], stream=stream)
        message = message_of(events_of(answer.text)) if stream else answer.json()
        assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "of France")
        assert message["content"][0]["text"].endswith("capital ")


def test_a_tool_is_called_and_its_result_is_read(ask: Ask) -> None:
    asked: Any = [{"role": "user", "content": "What is the weather in Rome?"}]
    given: Any = {
        "tools": [WEATHER],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "max_tokens": 80,
    }
    whole = ask(messages=asked, **given).json()
    streamed = message_of(events_of(ask(messages=asked, stream=True, **given).text))
    assert without_id(streamed) == without_id(whole)
    (call,) = whole["content"]
    assert (call["type"], call["name"], whole["stop_reason"]) == ("tool_use", "get_weather", "tool_use")
    assert list(call["input"]) == ["city"]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "sunny"}
    asked += [{"role": "assistant", "content": whole["content"]}, {"role": "user", "content": [result]}]
    final = ask(messages=asked, tools=[WEATHER]).json()
    assert final["usage"]["output_tokens"] > 0


def test_tokens_are_counted_as_the_answer_counts_them(ask: Ask) -> None:
    """Also where a choice leaves tools out of the prompt, and as soon as a stream begins."""
    other = WEATHER | {"name": "get_time"}
    for more in (
        {},
        {"system": "Be brief.", "tools": [WEATHER]},
        {"tools": [WEATHER, other], "tool_choice": {"type": "tool", "name": "get_time"}},
        {"tools": [WEATHER, other], "tool_choice": {"type": "none"}},
    ):
        counted = ask("/v1/messages/count_tokens", **more).json()["input_tokens"]
        assert without_id(ask(**more).json())["usage"][0] == counted
        start = events_of(ask(stream=True, **more).text)[0]["message"]
        assert without_id(start)["usage"][0] == counted

"""The engine process as the gateway meets it."""

import base64
import json
import struct
import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def ask(text: str, **more: Any) -> dict[str, Any]:
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 24,
    }
    return body | more


def chat(engine: httpx.Client, text: str, **more: Any) -> dict[str, Any]:
    response = engine.post("/v1/chat/completions", json=ask(text, **more))
    assert response.status_code == 200, response.text
    return response.json()


def events(engine: httpx.Client, body: dict[str, Any], path: str = "/v1/chat/completions") -> list[Any]:
    with engine.stream("POST", path, json=body | {"stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def metric(engine: httpx.Client, name: str) -> float:
    lines = engine.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"everlearn_engine_{name} ")).split()[1])


def test_the_capital_of_france(engine: httpx.Client) -> None:
    answer = chat(engine, "What is the capital of France?")
    assert "Paris" in answer["choices"][0]["message"]["content"]


def test_a_stream_says_the_same_as_a_whole_answer(engine: httpx.Client) -> None:
    whole = chat(engine, "Name three colours.")
    parts = events(engine, ask("Name three colours.", stream_options={"include_usage": True}))
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(part["choices"][0]["delta"].get("content", "") for part in parts[:-1])
    assert text == whole["choices"][0]["message"]["content"]
    assert parts[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert parts[-1]["choices"] == []
    assert parts[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert len({part["id"] for part in parts}) == 1


def test_finish_reasons(engine: httpx.Client) -> None:
    assert chat(engine, "Count to a million.", max_tokens=3)["choices"][0]["finish_reason"] == "length"
    stopped = chat(engine, "Count: 1, 2, 3, 4", max_tokens=60, stop=["4", "\n"])["choices"][0]
    assert stopped["finish_reason"] == "stop"
    assert "4" not in stopped["message"]["content"]


def test_usage_counts_the_tokens(engine: httpx.Client) -> None:
    usage = chat(engine, "Count to a million.", max_tokens=7, n=2)["usage"]
    assert usage["completion_tokens"] == 14
    assert usage["total_tokens"] == usage["prompt_tokens"] + 14


def test_json_schema_is_obeyed_at_any_temperature(engine: httpx.Client) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    answer = chat(
        engine, "Invent a person.", response_format=shape, temperature=1.5, n=4, seed=3, max_tokens=200
    )
    for choice in answer["choices"]:
        person = json.loads(choice["message"]["content"])
        assert set(person) == {"name", "age"}
        assert 0 <= person["age"] <= 120
        assert choice["finish_reason"] == "stop"


def test_json_object_is_json(engine: httpx.Client) -> None:
    shape = {"type": "json_object"}
    answer = chat(engine, "A person as JSON with two fields.", response_format=shape, max_tokens=300)
    choice = answer["choices"][0]
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)
    else:
        assert choice["message"]["content"].startswith("{")


def test_a_grammar_is_obeyed(engine: httpx.Client) -> None:
    shape = {"type": "grammar", "grammar": 'start: ("yes" | "no") "!"'}
    assert chat(engine, "Is water wet?", response_format=shape)["choices"][0]["message"]["content"] in (
        "yes!",
        "no!",
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_named_tool_is_called_once(engine: httpx.Client, stream: bool) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    body = ask("Weather in Paris?", tools=[WEATHER], tool_choice=choice, max_tokens=80)
    if stream:
        parts = events(engine, body)
        deltas = [call for part in parts for call in part["choices"][0]["delta"].get("tool_calls", [])]
        calls = [call for call in deltas if "name" in call["function"]]
        calls[0]["function"]["arguments"] = "".join(call["function"]["arguments"] for call in deltas)
        reason = parts[-1]["choices"][0]["finish_reason"]
    else:
        answer = chat(
            engine,
            **{k: v for k, v in body.items() if k not in ("messages", "model")},
            text="Weather in Paris?",
        )
        calls, reason = answer["choices"][0]["message"]["tool_calls"], answer["choices"][0]["finish_reason"]
        assert answer["choices"][0]["message"]["content"] is None
    assert reason == "tool_calls"
    assert [call["function"]["name"] for call in calls] == ["weather"]
    assert "city" in json.loads(calls[0]["function"]["arguments"])


def test_with_tools_an_answer_may_still_be_text(engine: httpx.Client) -> None:
    message = chat(engine, "Hello, how are you?", tools=[WEATHER], tool_choice="auto")["choices"][0][
        "message"
    ]
    assert message["content"] or message["tool_calls"]


def test_logprobs_describe_the_tokens(engine: httpx.Client) -> None:
    choice = chat(engine, "Say hello.", logprobs=True, top_logprobs=3, max_tokens=5)["choices"][0]
    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == choice["message"]["content"]
    for entry in content:
        assert entry["logprob"] <= 0
        assert entry["top_logprobs"][0]["token"] == entry["token"]  # greedy
        assert bytes(entry["bytes"]).decode() == entry["token"]


def test_completions_answer_each_prompt(engine: httpx.Client) -> None:
    body = {"model": "m", "prompt": ["The sky is", "Water is"], "n": 2, "max_tokens": 4, "temperature": 0}
    answer = engine.post("/v1/completions", json=body | {"logprobs": 1}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert "".join(answer["choices"][0]["logprobs"]["tokens"]) == texts[0]
    assert answer["usage"]["completion_tokens"] == 16


def test_a_prompt_of_tokens_is_the_prompt_of_its_text(engine: httpx.Client) -> None:
    text = engine.post("/v1/completions", json={"model": "m", "prompt": "Hello", "temperature": 0}).json()
    tokens = engine.post("/v1/completions", json={"model": "m", "prompt": [19556], "temperature": 0}).json()
    assert tokens["choices"][0]["text"] == text["choices"][0]["text"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": 100_000}, "messages"),
        ({"logit_bias": {"49152": 1}}, "logit_bias"),
        ({"response_format": {"type": "grammar", "grammar": "start: ("}}, "response_format.grammar"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "strin"}},
                }
            },
            "response_format.json_schema.schema",
        ),
        ({"tools": [WEATHER], "response_format": {"type": "grammar", "grammar": 'start: "a"'}}, "tools"),
        ({"temprature": 1}, "temprature"),
    ],
)
def test_bad_parameters_are_named(engine: httpx.Client, more: dict[str, Any], param: str) -> None:
    response = engine.post("/v1/chat/completions", json=ask("Hi") | more)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_prompt_over_the_context_says_how_long_it_is(engine: httpx.Client) -> None:
    error = engine.post("/v1/chat/completions", json=ask("word " * 9000)).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "8192" in error["message"]
    assert "90" in error["message"]


def test_an_endpoint_of_another_kind_of_model_says_what_there_is(engine: httpx.Client) -> None:
    response = engine.post("/v1/embeddings", json={"model": "m", "input": "x"})
    assert response.status_code == 404
    assert "/v1/chat/completions" in response.json()["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_row_at_once(engine: httpx.Client, stream: bool) -> None:
    body = ask("Count to a million.", max_tokens=4000, stream=stream, logit_bias={"2": -100})
    with httpx.Client(base_url=engine.base_url, timeout=1.5) as leaving:
        if stream:
            with leaving.stream("POST", "/v1/chat/completions", json=body) as response:
                assert next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                leaving.post("/v1/chat/completions", json=body)
    deadline = time.monotonic() + 2
    while metric(engine, "running") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert metric(engine, "running") == 0
    assert metric(engine, "kv_tokens_used") == 0


@pytest.mark.parametrize("stream", [True, False])
def test_what_a_client_that_left_had_used_can_be_asked_for(engine: httpx.Client, stream: bool) -> None:
    """Under the gateway's number for it: while it is worked on, and afterwards, with all of its answers."""
    body = ask("Count to a million.", max_tokens=4000, n=2, stream=stream, logit_bias={"2": -100})
    number = f"left-{stream}"
    expected = engine.post("/v1/chat/completions", json=body | {"max_tokens": 1, "stream": False}).json()[
        "usage"
    ]
    seen: list[dict[str, int]] = []

    def look() -> None:
        time.sleep(1)
        seen.append(engine.get(f"/used/{number}").json())

    looking = threading.Thread(target=look)
    with httpx.Client(
        base_url=engine.base_url, timeout=2, headers={"x-everlearn-request": number}
    ) as leaving:
        looking.start()
        if stream:
            with leaving.stream("POST", "/v1/chat/completions", json=body) as response:
                lines = response.iter_lines()  # who drops it closes the connection
                assert next(lines)
                looking.join()
        else:
            with pytest.raises(httpx.ReadTimeout):
                leaving.post("/v1/chat/completions", json=body)
            looking.join()
    time.sleep(0.5)
    last = engine.get(f"/used/{number}").json()
    assert expected["prompt_tokens"] == seen[0]["prompt_tokens"] == last["prompt_tokens"]
    assert 2 < seen[0]["completion_tokens"] <= last["completion_tokens"] < 8000
    assert engine.get(f"/used/{number}").json() == last
    assert engine.get("/used/nobody").status_code == engine.get("/used/").status_code == 404


def test_many_at_once_answer_as_they_do_alone(engine: httpx.Client) -> None:
    questions = [f"Say something about the number {n}." for n in range(12)]
    pairs = [questions[n : n + 2] for n in range(0, 12, 2)]

    def together(texts: list[str]) -> list[str]:
        found: dict[str, str] = {}

        def one(text: str) -> None:
            with httpx.Client(base_url=engine.base_url, timeout=120) as client:
                found[text] = chat(client, text, max_tokens=12)["choices"][0]["message"]["content"]

        threads = [threading.Thread(target=one, args=(text,)) for text in texts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [found[text] for text in texts]

    assert len(set(together(questions))) > 6
    assert all(together(pair) for pair in pairs)


def test_embeddings_are_unit_vectors_that_know_meaning(embedding_engine: httpx.Client) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Stock prices fell sharply today."]
    answer = embedding_engine.post("/v1/embeddings", json={"model": "minilm", "input": texts}).json()
    vectors = np.array([entry["embedding"] for entry in answer["data"]])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-3)
    assert vectors[0] @ vectors[1] > 0.4 > vectors[0] @ vectors[2] + 0.1
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 15


def test_base64_embeddings_are_the_same_numbers(embedding_engine: httpx.Client) -> None:
    body = {"model": "minilm", "input": "Hello"}
    plain, encoded = (
        embedding_engine.post("/v1/embeddings", json=body | {"encoding_format": form}).json()["data"][0][
            "embedding"
        ]
        for form in ("float", "base64")
    )
    raw = base64.b64decode(encoded)
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(plain)


def test_embedding_input_is_checked(embedding_engine: httpx.Client) -> None:
    for bad in ("", "word " * 600, [1, 2, 3]):
        response = embedding_engine.post("/v1/embeddings", json={"model": "minilm", "input": bad})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "input"


def test_health_says_how_much_the_model_takes(engine: httpx.Client, embedding_engine: httpx.Client) -> None:
    assert engine.get("/health").json() == {"status": "ready", "context": 8192}
    assert embedding_engine.get("/health").json()["context"] == 512


def test_an_upgrade_to_http_2_is_ignored_and_the_body_read(engine: httpx.Client) -> None:
    headers = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABk"}
    response = engine.post("/v1/chat/completions", json=ask("Say hello.", max_tokens=2), headers=headers)
    assert response.status_code == 200, response.text

"""vLLM on the real model, under the real supervisor and gateway, asked by the stock `openai` client."""

import json
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.e2e.conftest import copy_home
from tests.serve.supervised import REAL, Supervised, eventually, supervised

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here"),
]

READY_S = 600.0
MODEL = "smollm2"
CAPITAL: Any = [{"role": "user", "content": "What is the capital of France?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}


@pytest.fixture(scope="module")
def server(real_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    settings = copy_home(real_home, tmp_path_factory.mktemp("vllm") / "home")
    environment = {"EVERLEARN_STORE_URL": str(settings.store_url)}
    command = [*REAL, "--engine", "vllm"]
    with supervised(settings.home, MODEL, command=command, **environment) as running:  # type: ignore[arg-type]
        yield running.ready(READY_S)


@pytest.fixture(scope="module")
def client(server: Supervised) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def ask(client: openai.OpenAI, **options: Any) -> Any:
    given: dict[str, Any] = {"messages": CAPITAL, "temperature": 0, "max_tokens": 16, **options}
    return client.chat.completions.create(model=MODEL, **given)


@pytest.mark.parametrize("tools", [None, [WEATHER]], ids=["plain", "tools"])
def test_tokens_are_counted_as_its_answers_count_them(
    server: Supervised, client: openai.OpenAI, tools: Any
) -> None:
    given = {"tools": tools} if tools else {}
    body = {"model": f"{MODEL}", "messages": CAPITAL, "add_generation_prompt": True, **given}
    counted = httpx.post(f"{server.url}/tokenize", json=body).json()
    assert counted["count"] == len(counted["tokens"]) == ask(client, **given).usage.prompt_tokens
    body = {"model": MODEL, "tokens": counted["tokens"]}
    assert "capital of France" in httpx.post(f"{server.url}/detokenize", json=body).json()["prompt"]


def test_a_version_is_asked_by_its_number(client: openai.OpenAI) -> None:
    version = client.models.list().data[0].model_extra["version"]  # type: ignore[index]
    answer = client.chat.completions.create(model=f"{MODEL}@{version}", messages=CAPITAL, max_tokens=1)
    assert answer.usage


def test_it_answers_and_counts(client: openai.OpenAI) -> None:
    answer = ask(client)
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_it_is_the_tensors_that_answer(client: openai.OpenAI, server: Supervised) -> None:
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=CAPITAL, max_tokens=1)
    assert raw.headers["x-everlearn-version"] == "smollm2@1"
    assert "serve.engines.vllm" in " ".join(server.child("--bundle").cmdline())


def test_a_stream_is_the_answer_in_pieces_and_ends_with_its_usage(client: openai.OpenAI) -> None:
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == "The capital of France is Paris."
    assert len([text for text in texts if text]) > 3
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8


def test_it_stops_at_a_word(client: openai.OpenAI) -> None:
    answer = ask(client, stop=["Paris"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (
        "The capital of France is ",
        "stop",
    )


def test_the_same_question_gets_the_same_answer(client: openai.OpenAI) -> None:
    """Greedy, and with a seed; another seed says something else."""
    tale: Any = [{"role": "user", "content": "Tell me a story."}]

    def told(seed: int) -> str:
        return (
            ask(client, messages=tale, temperature=1.5, seed=seed, max_tokens=12).choices[0].message.content
        )

    assert ask(client).choices[0].message.content == ask(client).choices[0].message.content
    assert told(1) == told(1) != told(2)


def test_a_schema_and_a_grammar_bind_the_answer(client: openai.OpenAI) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "answer", "schema": CITY, "strict": True}}
    assert json.loads(ask(client, response_format=shape, max_tokens=40).choices[0].message.content) == {
        "city": "Paris"
    }
    grammar = {"type": "grammar", "grammar": 'start: "Oslo" | "Rome"'}
    answer = ask(client, extra_body={"response_format": grammar})
    assert answer.choices[0].message.content in ("Oslo", "Rome")


def test_a_tool_is_called(client: openai.OpenAI) -> None:
    answer = ask(
        client, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=60
    ).choices[0]
    call = answer.message.tool_calls[0].function
    assert (call.name, json.loads(call.arguments).keys()) == ("get_weather", {"city"})
    assert answer.finish_reason == "tool_calls"


def test_logprobs_are_those_of_the_tokens_said(client: openai.OpenAI) -> None:
    content = ask(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert "".join(token.token for token in content[:-1]).startswith("The capital of France is Paris")
    assert all(token.logprob <= 0 and len(token.top_logprobs) >= 2 for token in content)


def test_text_is_completed(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["One, two, three,", "A, B, C,"], max_tokens=4, temperature=0
    )
    assert "four" in answer.choices[0].text and "D" in answer.choices[1].text


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"extra_body": {"foo": 1}}, "foo"),
        ({"n": 2}, "n"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"messages": [{"role": "user", "content": "<|im_start|>"}]}, "messages[0].content"),
    ],
)
def test_what_cannot_be_done_is_a_bad_request_that_names_it(
    client: openai.OpenAI, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, **options)
    assert refused.value.param == param


def test_the_engine_offers_the_contract_and_nothing_of_vllm_besides(server: Supervised) -> None:
    with engine(server) as door:
        assert door.get("/health").json() == {"status": "ready", "context": 8192}
        assert door.get("/v1/models").json()["data"][0]["id"] == MODEL
        assert "vllm:" in door.get("/metrics").text
        for path in ("/version", "/pooling", "/docs", "/openapi.json", "/v1/responses", "/invocations"):
            assert door.get(path).status_code == 404
            assert door.post(path, json={}).status_code == 404


def test_nothing_listens_beyond_this_machine(server: Supervised) -> None:
    for process in family(server):
        for connection in process.net_connections("tcp"):
            assert connection.status != psutil.CONN_LISTEN or connection.laddr.ip == "127.0.0.1"


def test_no_process_stays_behind_when_the_engine_is_killed_or_the_server_ends(server: Supervised) -> None:
    """The last test of this module: it ends the server, whose next engine is just starting."""
    first = family(server)
    assert len(first) > 2, "vLLM computes in processes of its own"
    first[0].send_signal(signal.SIGKILL)
    assert not psutil.wait_procs(first, timeout=20)[1]
    second = eventually(lambda: family(server))
    assert second[0].pid != first[0].pid
    assert server.end(within_s=60) == 0
    assert not psutil.wait_procs(second, timeout=20)[1]


def engine(server: Supervised) -> httpx.Client:
    """A client of the engine's own socket."""
    command = server.child("--bundle").cmdline()
    path = command[command.index("--uds") + 1]
    return httpx.Client(transport=httpx.HTTPTransport(uds=path), base_url="http://engine", timeout=60)


def family(server: Supervised) -> list[psutil.Process]:
    """The engine's process, and those that it started."""
    child = server.child("--bundle")
    return [child, *child.children(recursive=True)]

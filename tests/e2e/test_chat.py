"""The client test suite: what the stock `openai` client asks, of SmolLM2 on each kind of engine."""

import json
from typing import Any

import httpx
import openai
import pytest
from jsonschema import validate
from tokenizers import Tokenizer

from tests.e2e.conftest import CAPITAL, Served
from tests.support.serve.supervised import Supervised

pytestmark = pytest.mark.slow

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
CITY_ASKED: Any = {
    "input": "What is the capital of France?",
    "temperature": 0,
    "max_output_tokens": 64,
    "text": {"format": {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}},
}
STORY = [{"role": "user", "content": "Tell me a short story about a lighthouse keeper and a storm."}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Current time of a time zone.",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}


def text(completion: Any) -> str:
    return completion.choices[0].message.content


def counts(completion: Any) -> tuple[int, int, int]:
    usage = completion.usage
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def prompt_text(messages: list[dict[str, str]]) -> str:
    """SmolLM2's chat template, which adds a system message where there is none."""
    system = {
        "role": "system",
        "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    }
    turns = messages if messages[0]["role"] == "system" else [system, *messages]
    written = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    return written + "<|im_start|>assistant\n"


def test_the_capital_of_france_is_paris(served: Served) -> None:
    completion = served.chat(stop=".")  # where a small model ends depends on the processor's kernels
    assert "Paris" in text(completion)
    assert completion.choices[0].finish_reason == "stop"
    assert completion.object == "chat.completion" and completion.model.startswith(served.model)


def test_the_models_are_listed(served: Served) -> None:
    assert {served.model, "minilm"} <= {model.id for model in served.client.models.list()}
    assert served.client.models.retrieve(served.model).id == served.model


def test_a_response_names_its_request_and_version(served: Served) -> None:
    raw = served.client.chat.completions.with_raw_response.create(
        model=served.model, messages=CAPITAL, max_tokens=1
    )
    assert raw.headers["x-request-id"]
    assert raw.headers["x-everlearn-version"].startswith(f"{served.model}@")


def test_a_stream_joins_to_the_text_without_stream(served: Served) -> None:
    whole = served.chat(STORY, max_tokens=60)
    chunks = list(served.chat(STORY, max_tokens=60, stream=True, stream_options={"include_usage": True}))
    joined = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert joined == text(whole)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        "length"
    ]
    assert chunks[-1].choices == [] and counts(chunks[-1]) == counts(whole)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_carries_no_usage_unasked(served: Served) -> None:
    chunks = list(served.chat(max_tokens=5, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_n_gives_n_choices(served: Served) -> None:
    completion = served.chat(STORY, n=3, max_tokens=20, temperature=1.2, seed=7)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in completion.choices}) > 1
    assert completion.usage.completion_tokens == 60


def test_n_streams_n_choices(served: Served) -> None:
    texts = {0: "", 1: ""}
    for chunk in served.chat(STORY, n=2, max_tokens=20, temperature=1.2, seed=7, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    whole = served.chat(STORY, n=2, max_tokens=20, temperature=1.2, seed=7)
    assert list(texts.values()) == [choice.message.content for choice in whole.choices]


def test_a_stop_string_ends_the_text_before_it(served: Served) -> None:
    full = text(served.chat())
    assert "France" in full
    completion = served.chat(stop="France")
    assert text(completion) == full.split("France")[0]
    assert completion.choices[0].finish_reason == "stop"


def test_a_stop_string_may_span_tokens_and_never_shows_in_a_stream(served: Served) -> None:
    full = text(served.chat())
    word = full[full.index("capital") + 4 : full.index("capital") + 12]
    chunks = served.chat(stop=["zzz", word], stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == full.split(word)[0]


def test_the_same_seed_gives_the_same_text(served: Served) -> None:
    def once(seed: int) -> str:
        return text(served.chat(STORY, seed=seed, temperature=1.5, max_tokens=30))

    assert once(11) == once(11)
    assert len({once(seed) for seed in (11, 12, 13)}) > 1


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_the_token_limit_ends_with_length(served: Served, limit: str) -> None:
    completion = served.chat(STORY, **{limit: 7})
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 7


def test_usage_counts_what_the_tokenizer_counts(served: Served, tokenizer: Tokenizer) -> None:
    messages = [
        {"role": "system", "content": "Be brief. 简短。"},
        {"role": "user", "content": "Zähle bis 3 🎈"},
    ]
    for asked in (CAPITAL, STORY, messages):
        usage = served.chat(asked, max_tokens=3).usage
        assert usage.prompt_tokens == len(tokenizer.encode(prompt_text(asked), add_special_tokens=False).ids)
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_logprobs_tell_the_tokens_of_the_text(served: Served) -> None:
    completion = served.chat(logprobs=True, top_logprobs=5, max_tokens=6)
    content = completion.choices[0].logprobs.content
    assert "".join(token.token for token in content) == text(completion)
    assert b"".join(bytes(token.bytes) for token in content).decode() == text(completion)
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 5
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert token.top_logprobs[0].token == token.token, "greedy takes the likeliest"


def test_logprobs_stream(served: Served) -> None:
    chunks = served.chat(logprobs=True, top_logprobs=1, max_tokens=6, stream=True)
    tokens = [
        token
        for c in chunks
        if c.choices and c.choices[0].logprobs
        for token in c.choices[0].logprobs.content or []
    ]
    assert len(tokens) == 6


def test_logit_bias_forbids_and_forces(served: Served, tokenizer: Tokenizer) -> None:
    [paris] = tokenizer.encode(" Paris", add_special_tokens=False).ids
    assert "Paris" not in text(served.chat(logit_bias={str(paris): -100}, max_tokens=20))
    assert text(served.chat(logit_bias={str(paris): 100}, max_tokens=3)) == " Paris" * 3


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_json_schema_is_kept_to(served: Served, temperature: float) -> None:
    completion = served.chat(
        [{"role": "user", "content": "Invent a person."}],
        temperature=temperature,
        max_tokens=120,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": PERSON, "strict": True},
        },
    )
    assert completion.choices[0].finish_reason == "stop"
    validate(json.loads(text(completion)), PERSON)


def test_a_json_object_is_json(served: Served) -> None:
    schema = {"type": "json_object"}
    messages = [{"role": "user", "content": "Answer in JSON: the capital of France, with the key capital."}]
    completion = served.chat(messages, response_format=schema, max_tokens=200)
    if completion.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text(completion)), dict)


def test_parse_gives_a_python_object(served: Served) -> None:
    from pydantic import BaseModel, ConfigDict, Field

    class Answer(BaseModel):
        model_config = ConfigDict(extra="forbid")
        is_city: bool
        letters: int = Field(ge=0, le=99)

    completion = served.client.chat.completions.parse(
        model=served.model, temperature=0, max_tokens=80, response_format=Answer,
        messages=[{"role": "user", "content": "Is Paris a city, and how many letters has its name?"}],
    )  # fmt: skip
    assert isinstance(completion.choices[0].message.parsed, Answer)


def called(completion: Any) -> list[tuple[str, dict[str, Any]]]:
    calls = completion.choices[0].message.tool_calls or []
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


ONE_CALL: Any = {"parallel_tool_calls": False, "max_tokens": 100}
WEATHER_QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


def test_a_required_tool_is_called(served: Served) -> None:
    completion = served.chat(WEATHER_QUESTION, tools=[WEATHER, CLOCK], tool_choice="required", **ONE_CALL)
    assert completion.choices[0].finish_reason == "tool_calls"
    for name, arguments in called(completion):
        schema = {"get_weather": WEATHER, "get_time": CLOCK}[name]["function"]["parameters"]
        validate(arguments, schema)
    assert called(completion)


def test_a_named_tool_is_called(served: Served) -> None:
    choice = {"type": "function", "function": {"name": "get_time"}}
    completion = served.chat(WEATHER_QUESTION, tools=[WEATHER, CLOCK], tool_choice=choice, max_tokens=100)
    [(name, arguments)] = called(completion)
    assert name == "get_time" and arguments["zone"] in ("UTC", "CET")


def test_tools_stream_the_same_call(served: Served) -> None:
    options: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required"} | ONE_CALL
    whole = called(served.chat(WEATHER_QUESTION, **options))
    arguments: dict[int, str] = {}
    names: dict[int, str] = {}
    for chunk in served.chat(WEATHER_QUESTION, stream=True, **options):
        for choice in chunk.choices:
            for call in choice.delta.tool_calls or []:
                names[call.index] = names.get(call.index) or call.function.name
                arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    assert [(names[i], json.loads(arguments[i])) for i in sorted(names)] == whole


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_nested_model_is_a_tool_in_every_mode(served: Served, choice: str) -> None:
    from openai import pydantic_function_tool
    from pydantic import BaseModel, Field

    class Place(BaseModel):
        city: str = Field(max_length=10)

    class Trip(BaseModel):
        start: Place
        end: Place

    tools = [pydantic_function_tool(Trip)]
    asked = [{"role": "user", "content": "Call Trip: a trip from Rome to Oslo."}]
    completion = served.chat(asked, tools=tools, tool_choice=choice, **ONE_CALL)
    for name, arguments in called(completion):
        assert name == "Trip" and Trip.model_validate(arguments)
    assert called(completion) or choice == "auto"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("options", "finish"),
    [
        ({"max_tokens": 8}, "length"),
        ({"stop": ["\n"]}, "tool_calls"),
        ({"stop": ["}", "city"]}, "tool_calls"),
    ],
)
def test_neither_limits_nor_stop_strings_show_the_framing_of_a_call(
    served: Served, options: dict[str, Any], finish: str, stream: bool
) -> None:
    asked: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required"} | ONE_CALL | options
    answer = served.chat(WEATHER_QUESTION, stream=stream, **asked)
    if stream:
        choices = [choice for chunk in answer for choice in chunk.choices]
        content = "".join(choice.delta.content or "" for choice in choices)
        reasons = [choice.finish_reason for choice in choices if choice.finish_reason]
        calls = [call for choice in choices for call in choice.delta.tool_calls or []]
    else:
        content, reasons = text(answer) or "", [answer.choices[0].finish_reason]
        calls = answer.choices[0].message.tool_calls or []
    assert (content, reasons) == ("", [finish])
    if finish == "tool_calls":
        arguments = "".join(call.function.arguments or "" for call in calls)
        validate(json.loads(arguments), WEATHER["function"]["parameters"])


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_with_a_format_besides_tools_an_answer_is_one_of_the_two(served: Served, choice: str) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    options: dict[str, Any] = {"tools": [WEATHER], "tool_choice": choice, "response_format": shape} | ONE_CALL
    completion = served.chat([{"role": "user", "content": "Invent a person."}], **options)
    for _, arguments in called(completion):
        validate(arguments, WEATHER["function"]["parameters"])
    assert called(completion) or choice == "auto"
    if not called(completion):
        validate(json.loads(text(completion)), PERSON)


def test_what_is_left_open_of_a_schema_is_told_by_a_header_or_refused_where_strict(served: Served) -> None:
    schema = {"type": "object", "properties": {"path": {"type": "string", "format": "path"}}}
    tool: Any = {"type": "function", "function": {"name": "read", "parameters": schema}}
    asked: Any = {"model": served.model, "messages": CAPITAL, "max_tokens": 1}
    raw = served.client.chat.completions.with_raw_response.create(tools=[tool], **asked)
    place = "tools[0].function.parameters.properties.path.format"
    assert raw.headers["x-everlearn-left-open"] == place
    tool["function"]["strict"] = True
    with pytest.raises(openai.BadRequestError) as refused:
        served.client.chat.completions.create(tools=[tool], **asked)
    assert refused.value.param == place


@pytest.mark.parametrize("arguments", ['{"city": "\\ud83d"}', "[" * 3000 + "]" * 3000, "no JSON"])
def test_strange_arguments_of_an_earlier_call_are_no_failure(served: Served, arguments: str) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages: list[Any] = [
        *WEATHER_QUESTION,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "sunny"},
    ]
    assert served.chat(messages, tools=[WEATHER], max_tokens=2).choices[0].finish_reason


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_tools_left_to_the_model_give_text_or_a_valid_call(served: Served, choice: str) -> None:
    completion = served.chat(WEATHER_QUESTION, tools=[WEATHER], tool_choice=choice, max_tokens=60)
    if choice == "none":
        assert not called(completion)
    for name, arguments in called(completion):
        assert name == "get_weather"
        validate(arguments, WEATHER["function"]["parameters"])
    assert called(completion) or text(completion)


def test_a_tool_result_is_answered(served: Served) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }
    messages: list[Any] = [
        *WEATHER_QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees, sunny"},
    ]
    assert text(served.chat(messages, tools=[WEATHER], tool_choice="none", max_tokens=40))


def test_unicode_survives_streaming(served: Served) -> None:
    """The model is made to repeat characters whose bytes span tokens."""
    grammar = {"type": "grammar", "grammar": 'start: "漢字 🎈 naïve — Ωμέγα"'}
    body = {"response_format": grammar}
    chunks = list(served.chat(max_tokens=60, stream=True, extra_body=body))
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == "漢字 🎈 naïve — Ωμέγα"
    assert not any("\ufffd" in piece for piece in pieces)


def test_completions_continue_a_text(served: Served, tokenizer: Tokenizer) -> None:
    prompt = "The capital of France is"
    completion = served.client.completions.create(
        model=served.model, prompt=prompt, max_tokens=5, temperature=0
    )
    assert completion.usage.completion_tokens == 5 and completion.choices[0].finish_reason == "length"
    assert completion.usage.prompt_tokens == len(tokenizer.encode(prompt, add_special_tokens=False).ids)
    chunks = served.client.completions.create(
        model=served.model, prompt=prompt, max_tokens=5, temperature=0, stream=True
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == completion.choices[0].text


def test_responses_answer(served: Served) -> None:
    response = served.client.responses.create(model=served.model, **CITY_ASKED)
    assert response.status == "completed" and "Paris" in response.output_text
    assert response.usage.output_tokens > 0


def test_responses_stream(served: Served) -> None:
    whole = served.client.responses.create(model=served.model, **CITY_ASKED)
    events = list(served.client.responses.create(model=served.model, **CITY_ASKED, stream=True))
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    joined = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert joined == whole.output_text == events[-1].response.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize("tools", [None, [WEATHER]], ids=["plain", "tools"])
def test_tokens_are_counted_as_answers_count_them(
    served: Served, server: Supervised, key: str, tools: list[Any] | None
) -> None:
    given = {"tools": tools} if tools else {}
    headers = {"authorization": f"Bearer {key}"}
    body: dict[str, Any] = {"model": served.model, "messages": CAPITAL, **given}
    counted = httpx.post(f"{server.url}/tokenize", json=body, headers=headers).json()
    assert (
        counted["count"] == len(counted["tokens"]) == served.chat(max_tokens=1, **given).usage.prompt_tokens
    )
    body = {"model": served.model, "tokens": counted["tokens"]}
    text = httpx.post(f"{server.url}/detokenize", json=body, headers=headers).json()["prompt"]
    assert "capital of France" in text


def test_a_version_is_asked_by_its_number(served: Served) -> None:
    listed = served.client.models.retrieve(served.model)
    ref = f"{served.model}@{listed.version}"  # type: ignore[attr-defined]
    assert served.client.chat.completions.create(model=ref, messages=CAPITAL, max_tokens=1).usage


def test_a_grammar_binds_the_answer(served: Served) -> None:
    """Both kinds of engine go by one grammar library, and a Lark grammar binds them alike."""
    grammar = {"type": "grammar", "grammar": 'start: "Oslo" | "Rome"'}
    assert text(served.chat(extra_body={"response_format": grammar})) in ("Oslo", "Rome")

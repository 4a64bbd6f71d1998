"""Answers and stream events held against the published schema of their API, strictly.

OpenAI's and Anthropic's are the types of their stock clients, which the clients themselves fill without a check; here
no field may be unknown, none that is required may be missing, and literals must be among those named. The Open
Responses specification (2026-04-24) is `openresponses-types`, generated from its OpenAPI document; it lets a server
add fields.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any, get_args

import openresponses_types.types as open_responses
from anthropic.types import Message, MessageTokensCount, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.shared import ErrorObject
from pydantic import BaseModel, TypeAdapter, ValidationError

Model = type[BaseModel]

PRESENT = {
    "openai.types.chat.chat_completion.Choice": {"logprobs"},
    "openai.types.chat.chat_completion_message.ChatCompletionMessage": {"content", "refusal", "annotations"},
    "openai.types.chat.chat_completion.ChatCompletion": {"usage"},
    "openai.types.completion_choice.CompletionChoice": {"logprobs"},
    "anthropic.types.message.Message": {"stop_reason", "stop_sequence", "stop_details", "container"},
    "anthropic.types.usage.Usage": {
        "cache_creation", "cache_creation_input_tokens", "cache_read_input_tokens", "server_tool_use", "service_tier",
        "inference_geo",
    },
    "anthropic.types.text_block.TextBlock": {"citations"},
    "anthropic.types.tool_use_block.ToolUseBlock": {"caller"},
    "anthropic.types.raw_message_delta_event.Delta": {"stop_reason", "stop_sequence", "stop_details", "container"},
    "anthropic.types.message_delta_usage.MessageDeltaUsage": {
        "input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "server_tool_use",
    },
}  # fmt: skip
"""Fields that may be null and must be there: the APIs' documents say so, the clients' types take them as optional."""

EXTENSIONS = {"stop_reason"}
"""Fields of a choice that docs/serving.md tells of."""


def fits(schema: Model, value: Any, *, open: bool = False) -> list[str]:
    """What is wrong with a JSON value; with `open` it may have more fields than the schema names."""
    try:
        adapter = TypeAdapter(schema)
        held = adapter.validate_json(json.dumps(value), strict=True, extra=None if open else "forbid")
    except ValidationError as error:
        return [f"{schema.__name__}: {_told(flaw)}" for flaw in error.errors(include_url=False)]
    return list(_absent(held))


def whole(api: str, answer: Any) -> list[str]:
    """Flaws of a whole answer of `api`."""
    if api == "responses":
        return _both(Response, open_responses.ResponseResource, answer, answer)
    if api in ("chat", "completions"):
        answer = _plain(answer)
    return fits(WHOLE[api], answer)


def streamed(api: str, text: str) -> list[str]:
    """Flaws of a stream of `api`, and of the order that holds for any: names, numbers, one end."""
    return list(STREAMS[api](text))


def error(api: str, answer: Any) -> list[str]:
    """Flaws of the body of an error."""
    if api in ("messages", "count_tokens"):
        return fits(ErrorResponse, answer)
    return (
        [] if answer.keys() == {"error"} and not fits(ErrorObject, answer["error"]) else [f"error: {answer}"]
    )


def _chunks(schema: Model) -> Callable[[str], Iterator[str]]:
    def check(text: str) -> Iterator[str]:
        *events, end = text.removesuffix("\n\n").split("\n\n")
        if end != "data: [DONE]" or not events:
            yield f"the stream ends with {end[:100]}"
        for event in events:
            yield from fits(schema, _plain(json.loads(event.removeprefix("data: "))))

    return check


def _response_events(text: str) -> Iterator[str]:
    number = -1
    for number, (name, event) in enumerate(_named(text)):
        if (event["type"], event["sequence_number"]) != (name, number):
            yield f"event {number} is {event['type']} {event['sequence_number']}, named {name}"
        if name in OPENAI_EVENTS and name in OPEN_EVENTS:
            yield from _both(OPENAI_EVENTS[name], OPEN_EVENTS[name], event, event.get("response"))
        else:
            yield f"unknown {name}"
    if number < 0:
        yield "no events"


def _message_events(text: str) -> Iterator[str]:
    names = []
    for name, event in _named(text):
        names.append(name)
        if event["type"] != name:
            yield f"{event['type']} is named {name}"
        yield from fits(ANTHROPIC_EVENTS[name], event) if name in ANTHROPIC_EVENTS else [f"unknown {name}"]
    if names[:1] + names[-2:] != ["message_start", "message_delta", "message_stop"]:
        yield f"the stream's events are {names}"


def _named(text: str) -> Iterator[tuple[str, Any]]:
    """Name and data of each event."""
    for event in text.removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        yield name.removeprefix("event: "), json.loads(data.removeprefix("data: "))


def _both(openai: Model, open: Model, value: Any, response: Any) -> list[str]:
    """Flaws of what has to fit OpenAI's schema and the specification: fields may be unknown to one of them.

    The specification has a slip that OpenAI's schema has not: it says that a format's `schema` is null in answers.
    """
    known = [f" response.{name}:" for name in OPEN_FIELDS] + [f" {name}:" for name in OPEN_FIELDS]
    flaws = [
        flaw for flaw in fits(openai, value)
        if "Extra inputs" not in flaw or not any(name in flaw for name in known)
    ]  # fmt: skip
    if response and response["text"]["format"].get("schema"):
        response["text"]["format"]["schema"] = None
    return flaws + fits(open, value, open=True)


def _plain(answer: Any) -> Any:
    """Without extensions; and with a reason for the end where a chunk of a completion has none yet.

    OpenAI's schema has the same class for these chunks as for whole answers, and its server sends null.
    """
    choices = []
    for choice in answer["choices"]:
        plain = {name: value for name, value in choice.items() if name not in EXTENSIONS}
        if "text" in plain and plain["finish_reason"] is None:
            plain["finish_reason"] = "stop"
        choices.append(plain)
    return answer | {"choices": choices}


def _absent(value: Any) -> Iterator[str]:
    """What has to be there, though it may be null."""
    if isinstance(value, list):
        for item in value:
            yield from _absent(item)
    elif isinstance(value, BaseModel):
        kind = type(value)
        names = PRESENT.get(f"{kind.__module__}.{kind.__name__}", set())
        yield from (f"{kind.__name__}: {name} is absent" for name in sorted(names - value.model_fields_set))
        for name in kind.model_fields:
            yield from _absent(getattr(value, name, None))


def _told(flaw: Any) -> str:
    return f"{'.'.join(map(str, flaw['loc']))}: {flaw['msg']} ({str(flaw['input'])[:80]})"


def _by_type(schemas: Any) -> dict[str, Model]:
    """Event classes by the one value of their `type`."""
    found = {}
    for schema in schemas:
        kind = schema.model_fields["type"].annotation
        literal = get_args(kind)[0] if get_args(kind) else next(iter(kind)).value
        found[literal] = schema
    return found


WHOLE: dict[str, Model] = {
    "chat": ChatCompletion,
    "completions": Completion,
    "embeddings": CreateEmbeddingResponse,
    "messages": Message,
    "count_tokens": MessageTokensCount,
}
STREAMS: dict[str, Callable[[str], Iterator[str]]] = {
    "chat": _chunks(ChatCompletionChunk),
    "completions": _chunks(Completion),
    "responses": _response_events,
    "messages": _message_events,
}
OPENAI_EVENTS = _by_type(get_args(get_args(ResponseStreamEvent)[0]))
ANTHROPIC_EVENTS = _by_type(get_args(get_args(RawMessageStreamEvent)[0]))
OPEN_FIELDS = set(open_responses.ResponseResource.model_fields) - set(Response.model_fields)
OPEN_EVENTS = _by_type(
    schema for name, schema in vars(open_responses).items() if name.endswith("StreamingEvent")
)

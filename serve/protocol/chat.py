"""The OpenAI request bodies this server accepts, as an allow-list.

Gateway and engines parse the same models: the gateway from the client's bytes, the engine from what the
gateway writes again with `encode`. A parameter that is unknown, or known to OpenAI and not offered here,
is refused by name; nothing is silently ignored except the labels listed in `Labels`.
"""

import json
import re
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError, to_json

from everlearn.errors import InvalidInput
from everlearn.suggest import did_you_mean
from serve.json_body import MAX_DEPTH, decode

MAX_SCHEMA_BYTES = 128 * 1024
MAX_GRAMMAR_BYTES = 64 * 1024
MAX_MESSAGES = 2048
MAX_TOKENS = 2**31 - 1
MAX_STOPS = 16

NOT_OFFERED = frozenset({
    "annotations", "audio", "background", "best_of", "cache_control", "chat_template",
    "chat_template_kwargs", "compaction", "container", "context_management", "conversation",
    "diagnostics", "dimensions", "echo", "fallbacks", "file", "file_id", "function_call", "functions",
    "image_url", "include", "inference_geo", "input_audio", "logprobs_mode", "max_tool_calls",
    "mcp_servers", "modalities", "moderation", "prediction", "previous_response_id", "prompt",
    "prompt_cache_retention", "reasoning", "reasoning_content", "reasoning_effort", "refusal", "speed",
    "suffix", "thinking", "thread", "truncation", "verbosity", "web_search_options",
})  # fmt: skip
"""OpenAI's (and common servers') parameters that exist elsewhere: refused as unsupported, `null` accepted."""

Schema = dict[str, Any]


def _bounded_schema(value: Any) -> Any:
    if isinstance(value, dict):
        try:
            size_bytes = len(json.dumps(value, allow_nan=False))
        except ValueError as error:
            raise PydanticCustomError("finite_number", "Numbers in a schema must be finite") from error
        if size_bytes > MAX_SCHEMA_BYTES:
            raise PydanticCustomError(
                "too_long", "A JSON schema may have at most {limit} bytes", {"limit": MAX_SCHEMA_BYTES}
            )
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _string_or_list(value: Any) -> str:
    return "text" if isinstance(value, str) else "list"


def _prompt_kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    first = value[0] if isinstance(value, list) and value else ""
    return {int: "tokens", list: "token_lists"}.get(type(first), "texts")


JsonSchema = Annotated[Schema, BeforeValidator(_bounded_schema)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
FINE_TUNED = re.compile(r"ft:([^:@]+):everlearn:[^:]*:([0-9]{1,9})")
"""What a version that a job with a suffix made is called: ``ft:MODEL:everlearn:SUFFIX:VERSION``."""


def plain_ref(model: str) -> str:
    """``model``, where it is the name of a fine-tuned model: as ``MODEL@VERSION``."""
    match = FINE_TUNED.fullmatch(model)
    return f"{match[1]}@{match[2]}" if match else model


ModelName = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(plain_ref)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
Tokens = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(min_length=1, max_length=2048, fail_fast=True), Tag("texts")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[list[Tokens], Field(min_length=1, max_length=2048, fail_fast=True), Tag("token_lists")],
    Discriminator(_prompt_kind),
]


class Body(BaseModel):
    """Strict object: no coercion, no unknown key.

    A key is 'not given' where its value is `null` (for a known key) or asks for nothing.
    """

    model_config = ConfigDict(strict=True, extra="forbid", serialize_by_alias=True, protected_namespaces=())

    asks_nothing: ClassVar[dict[str, Any]] = {}
    """For some keys the value that changes nothing: clients send it by default."""

    @model_validator(mode="before")
    @classmethod
    def _drop_what_is_not_given(cls, data: Any) -> Any:
        if isinstance(data, dict) and (None in data.values() or not cls.asks_nothing.keys().isdisjoint(data)):
            return {key: value for key, value in data.items() if not cls._not_given(key, value)}
        return data

    @classmethod
    def _not_given(cls, key: str, value: Any) -> bool:
        if value is None:
            return key in NOT_OFFERED or key in _field_names(cls)
        nothing = cls.asks_nothing.get(key)
        return nothing is not None and type(value) is type(nothing) and value == nothing


class Past(Body):
    """A piece of the history, as a client kept it from an earlier answer: `null` is 'not given' for any key."""

    @classmethod
    def _not_given(cls, key: str, value: Any) -> bool:
        return value is None or super()._not_given(key, value)


def _field_names(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


class TextPart(Past):
    """One piece of message text."""

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _text_only(cls, data: Any) -> Any:
        return _only_types(data, ("text",), "Content parts")


def _only_types(data: Any, offered: tuple[str, ...], what: str) -> Any:
    kind = data.get("type") if isinstance(data, dict) else None
    if isinstance(kind, str) and kind not in offered:
        raise PydanticCustomError(
            "not_offered",
            "{what} of type '{kind}' are not supported; supported: {offered}",
            {"what": what, "kind": kind[:64], "offered": ", ".join(offered), "below": "type"},
        )
    return data


TextParts = Annotated[list[TextPart], Field(max_length=MAX_MESSAGES, fail_fast=True)]
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[TextParts, Tag("list")], Discriminator(_string_or_list)
]


class CalledFunction(Past):
    name: FunctionName
    arguments: str


class ToolCall(Past):
    """A function call an earlier assistant turn made."""

    id: str = Field(max_length=256)
    type: Literal["function"]
    function: CalledFunction
    index: int | None = Field(None, exclude=True)


class _Message(Past):
    name: str | None = Field(None, min_length=1, max_length=64)


class SystemMessage(_Message):
    role: Literal["system", "developer"]
    content: Content


class UserMessage(_Message):
    role: Literal["user"]
    content: Content


class AssistantMessage(_Message):
    asks_nothing: ClassVar = {"tool_calls": []}

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=128)
    annotations: list[Any] | None = Field(None, max_length=0, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _null_without_calls_is_nothing_said(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("content", "") is None and not data.get("tool_calls"):
            return data | {"content": ""}
        return data

    @model_validator(mode="after")
    def _says_something(self) -> "AssistantMessage":
        if self.content is None and self.tool_calls is None:
            raise PydanticCustomError(
                "missing_content", "An assistant message needs content or tool_calls", {"below": "content"}
            )
        return self


class ToolMessage(_Message):
    role: Literal["tool"]
    content: Content
    tool_call_id: str = Field(max_length=256)


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Body):
    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _functions_only(cls, data: Any) -> Any:
        return _only_types(data, ("function",), "Tools")


class NamedFunction(Body):
    name: FunctionName


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


class TextFormat(Body):
    type: Literal["text"]


class JsonObjectFormat(Body):
    type: Literal["json_object"]


class SchemaFormat(Body):
    name: FunctionName
    description: str | None = None
    schema_: JsonSchema = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: SchemaFormat


class GrammarFormat(Body):
    """Extension: constrain the output by a Lark grammar (llguidance's dialect)."""

    type: Literal["grammar"]
    grammar: str = Field(min_length=1, max_length=MAX_GRAMMAR_BYTES)


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat | GrammarFormat, Field(discriminator="type")
]


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, exclude=True)


class AboutModel(Body):
    """A request that names a model."""

    model: ModelName


class Labels(AboutModel):
    """Parameters that carry no meaning for the answer: accepted, checked, and not passed on."""

    user: str | None = Field(None, max_length=512, exclude=True)
    metadata: dict[str, str] | None = Field(None, max_length=16, exclude=True)
    safety_identifier: str | None = Field(None, max_length=512, exclude=True)
    prompt_cache_key: str | None = Field(None, max_length=512, exclude=True)
    service_tier: Literal["auto", "default", "flex"] | None = Field(None, exclude=True)


class SamplingFields(Labels):
    """How the next token is chosen and when to stop."""

    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, le=MAX_TOKENS, description="Extension; 0 means no limit.")
    min_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False, description="Extension.")
    n: int | None = Field(None, ge=1, le=128)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]] | None,
        BeforeValidator(_as_list, json_schema_input_type=str | list[str] | None),
    ] = Field(None, max_length=MAX_STOPS)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: (
        dict[
            Annotated[str, Field(pattern=r"^[0-9]{1,9}$")],
            Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)],
        ]
        | None
    ) = Field(None, max_length=300)
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    service_tier: Literal["auto", "default", "flex"] | None = Field(
        None, description="flex: cheaper for others, since everyone else's answers come first."
    )

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> "SamplingFields":
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(
                "needs_stream", "Only allowed when stream is true", {"below": "stream_options"}
            )
        return self

    @property
    def include_usage(self) -> bool:
        """True when the client asked for the usage chunk at the end of its stream."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions."""

    asks_nothing: ClassVar = {
        "tools": [],
        "functions": [],
        "function_call": "none",
        "modalities": ["text"],
        "store": False,
        "top_logprobs": 0,
    }

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    store: Literal[False] | None = Field(None, exclude=True)

    @model_validator(mode="after")
    def _fields_agree(self) -> "ChatRequest":
        if len({self.max_tokens, self.max_completion_tokens} - {None}) > 1:
            _disagree("max_tokens", "Differs from max_completion_tokens; give one of the two")
        if self.top_logprobs is not None and not self.logprobs:
            _disagree("top_logprobs", "Only allowed when logprobs is true")
        check_tools(self.tools or [], self.tool_choice)
        return self

    @property
    def max_new_tokens(self) -> int | None:
        """The client's limit on generated tokens, under either of its two names."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def check_tools(tools: list[Tool], choice: str | NamedTool | None) -> None:
    """In a validator: each tool has its own name, and what is chosen is there."""
    names = {tool.function.name for tool in tools}
    if len(names) != len(tools):
        _disagree("tools", "Two tools have the same name")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        _disagree("tool_choice", "Names a function that is not in tools")
    if choice == "required" and not names:
        _disagree("tool_choice", "'required' needs tools")


class CompletionRequest(SamplingFields):
    """POST /v1/completions."""

    asks_nothing: ClassVar = {"echo": False, "best_of": 1, "suffix": ""}

    prompt: Prompt
    logprobs: int | None = Field(None, ge=0, le=20)
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    echo: bool | None = Field(
        None, description="The prompt comes first in the text; with logprobs, its log-probabilities, too."
    )

    @model_validator(mode="after")
    def _something_is_asked(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            _disagree("max_tokens", "0 is only allowed when echo is true")
        return self


class EmbeddingRequest(Labels):
    """POST /v1/embeddings."""

    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None


def _disagree(field: str, message: str) -> None:
    raise PydanticCustomError("fields_disagree", message, {"below": field})  # type: ignore[arg-type]


Request = TypeVar("Request", bound=Body)


def parse(model: type[Request], body: bytes) -> Request:
    """Validate a request body.

    Every flaw (JSON syntax, duplicate keys, NaN, bad UTF-8, depth, size, types, ranges, unknown names) raises
    InvalidInput whose `param` is the path of the field, as in `messages[0].content`.
    """
    data = decode(body)
    if not isinstance(data, dict):
        raise InvalidInput("The request body must be a JSON object.")
    return validate(model, data)


def validate(model: type[Request], data: dict[str, Any]) -> Request:
    """`parse` for a body that is decoded already."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _explain(model, data, error) from None
    except RecursionError:
        raise InvalidInput(f"The request body is nested more than {MAX_DEPTH} levels deep.") from None


def encode(request: BaseModel, **changes: Any) -> bytes:
    """The request as the engine gets it: only what the client set and this module knows, plus `changes`."""
    return to_json(request.model_dump(exclude_unset=True) | changes)


def error_body(message: str, type: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def _explain(model: type[Body], data: dict[str, Any], error: ValidationError) -> InvalidInput:
    details = error.errors(include_url=False, include_input=False)
    paths = [_path(data, detail) for detail in details]
    best = min(range(len(details)), key=lambda i: (_rank(details[i]), -paths[i].count(".")))
    path, detail = paths[best], details[best]
    if detail["type"] == "extra_forbidden":
        return InvalidInput(_unknown(model, path), param=path)
    messages = {_short(d["msg"]) for p, d in zip(paths, details, strict=True) if p == path}
    return InvalidInput(f"Invalid '{path}': {' or '.join(sorted(messages))}.", param=path)


def _rank(detail: ErrorDetails) -> int:
    """Lower explains better: a wrong `type` or an unknown name says more than what follows from it."""
    if detail["type"] in ("not_offered", "union_tag_invalid"):
        return 0
    return {"extra_forbidden": 1, "missing": 3}.get(detail["type"], 2)


def _path(data: Any, detail: ErrorDetails) -> str:
    """The field's path in the client's body; steps pydantic adds for unions and keys are left out."""
    path, here = "", data
    last = len(detail["loc"]) - 1
    for position, step in enumerate(detail["loc"]):
        if isinstance(here, list) and isinstance(step, int) and step < len(here):
            path, here = f"{path}[{step}]", here[step]
        elif isinstance(here, dict) and (step in here or (position == last and detail["type"] == "missing")):
            path, here = f"{path}.{_short(str(step), 64)}", here.get(step)
    below = detail.get("ctx", {}).get("below") or detail.get("ctx", {}).get("discriminator", "").strip("'")
    return f"{path}.{below}".lstrip(".") if below else path.lstrip(".")


def _unknown(model: type[Body], path: str) -> str:
    name = path.rpartition(".")[2]
    if name in NOT_OFFERED:
        return f"Parameter '{path}' is not supported by this server."
    hint = did_you_mean(name, _field_names(model)) if name == path else ""
    return f"Unknown parameter: '{path}'{hint}."


def _short(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"

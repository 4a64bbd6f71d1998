"""The bodies of OpenAI's responses API, as an allow-list: text and function tools, nothing stored."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from serve.protocol.body import (
    MAX_MESSAGES,
    MAX_TOKENS,
    Body,
    FunctionName,
    HistoryItem,
    JsonSchema,
    Labels,
    only_types,
    string_or_list,
)
from serve.protocol.chat import JsonObjectFormat, SchemaFormat, TextFormat


class InputTextPart(HistoryItem):
    """A piece of text in a Responses item; what an earlier answer attached to it is dropped."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] | None = Field(None, max_length=0, exclude=True)
    logprobs: list[Any] | None = Field(None, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _text_only(cls, data: Any) -> Any:
        return only_types(data, ("input_text", "output_text", "text"), "Content parts")


InputTextParts = Annotated[list[InputTextPart], Field(max_length=MAX_MESSAGES, fail_fast=True)]
InputContent = Annotated[
    Annotated[str, Tag("text")] | Annotated[InputTextParts, Tag("list")], Discriminator(string_or_list)
]


class _Item(HistoryItem):
    id: str | None = Field(None, max_length=256, exclude=True)
    status: str | None = Field(None, max_length=64, exclude=True)


class MessageItem(_Item):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: InputContent


class FunctionCallItem(_Item):
    type: Literal["function_call"]
    call_id: str = Field(max_length=256)
    name: FunctionName
    arguments: str


class FunctionCallOutputItem(_Item):
    type: Literal["function_call_output"]
    call_id: str = Field(max_length=256)
    output: InputContent


ITEM_TYPES = ("message", "function_call", "function_call_output")


def _item_kind(value: Any) -> str | None:
    return (value.get("type") or "message") if isinstance(value, dict) else getattr(value, "type", None)


def _offered_item(value: Any) -> Any:
    return only_types(value, ITEM_TYPES, "Items")


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")],
    Discriminator(_item_kind),
    BeforeValidator(_offered_item),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


class ResponseTool(Body):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: JsonSchema | None = None
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _functions_only(cls, data: Any) -> Any:
        return only_types(data, ("function",), "Tools")


class NamedResponseTool(Body):
    type: Literal["function"]
    name: FunctionName


class ResponseSchemaFormat(SchemaFormat):
    type: Literal["json_schema"]


class ResponseText(Body):
    format: (
        Annotated[TextFormat | JsonObjectFormat | ResponseSchemaFormat, Field(discriminator="type")] | None
    ) = None


class ResponseStreamOptions(Body):
    include_obfuscation: bool | None = Field(None, exclude=True)


class ResponsesRequest(Labels):
    """POST /v1/responses; stateless, so nothing is stored and no earlier response can be named."""

    no_op_values: ClassVar = {"top_logprobs": 0}

    input: Annotated[
        Annotated[str, Tag("text")] | Annotated[Items, Tag("list")], Discriminator(string_or_list)
    ]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    frequency_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    presence_penalty: float | None = Field(None, ge=-2, le=2, allow_inf_nan=False)
    text: ResponseText | None = None
    tools: list[ResponseTool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedResponseTool | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    truncation: Literal["disabled"] | None = None
    include: list[str] | None = Field(None, max_length=0)
    service_tier: Literal["auto", "default", "flex"] | None = None

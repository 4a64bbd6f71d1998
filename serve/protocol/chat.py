"""The body of OpenAI's chat completions: messages, tools, and the format of the answer.

Gateway and engines parse the same models: the gateway from the client's bytes, the engine from what the gateway
writes again with `parsing.encode`.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from serve.protocol.body import (
    MAX_MESSAGES,
    MAX_TOKENS,
    Body,
    FunctionName,
    HistoryItem,
    JsonSchema,
    disagree,
    only_types,
    string_or_list,
)
from serve.protocol.sampling import SamplingFields

MAX_GRAMMAR_BYTES = 64 * 1024


class TextPart(HistoryItem):
    """One piece of message text."""

    type: Literal["text"]
    text: str

    @model_validator(mode="before")
    @classmethod
    def _text_only(cls, data: Any) -> Any:
        return only_types(data, ("text",), "Content parts")


TextParts = Annotated[list[TextPart], Field(max_length=MAX_MESSAGES, fail_fast=True)]
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[TextParts, Tag("list")], Discriminator(string_or_list)
]


class CalledFunction(HistoryItem):
    name: FunctionName
    arguments: str


class ToolCall(HistoryItem):
    """A function call an earlier assistant turn made."""

    id: str = Field(max_length=256)
    type: Literal["function"]
    function: CalledFunction
    index: int | None = Field(None, exclude=True)


class _Message(HistoryItem):
    name: str | None = Field(None, min_length=1, max_length=64)


class SystemMessage(_Message):
    role: Literal["system", "developer"]
    content: Content


class UserMessage(_Message):
    role: Literal["user"]
    content: Content


class AssistantMessage(_Message):
    no_op_values: ClassVar = {"tool_calls": []}

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
        return only_types(data, ("function",), "Tools")


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


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions."""

    no_op_values: ClassVar = {
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
            disagree("max_tokens", "Differs from max_completion_tokens; give one of the two")
        if self.top_logprobs is not None and not self.logprobs:
            disagree("top_logprobs", "Only allowed when logprobs is true")
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
        disagree("tools", "Two tools have the same name")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        disagree("tool_choice", "Names a function that is not in tools")
    if choice == "required" and not names:
        disagree("tool_choice", "'required' needs tools")

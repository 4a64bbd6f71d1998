"""The bodies of Anthropic's messages API, as an allow-list: text and tools of the client's own."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from serve.protocol.body import (
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOKENS,
    Body,
    FunctionName,
    HistoryItem,
    JsonSchema,
    ModelRequest,
    only_types,
    string_or_list,
)


class CacheControl(Body):
    """Prompts are cached here without being told to."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class _Block(HistoryItem):
    cache_control: CacheControl | None = Field(None, exclude=True)


class TextBlock(_Block):
    type: Literal["text"]
    text: str
    citations: list[Any] | None = Field(None, max_length=0, exclude=True)


class DirectCaller(Body):
    """The model itself called."""

    type: Literal["direct"]


class ToolUseBlock(_Block):
    """A call that an earlier answer made."""

    type: Literal["tool_use"]
    id: str = Field(max_length=256)
    name: FunctionName
    input: dict[str, Any]
    caller: DirectCaller | None = Field(None, exclude=True)


def _offering(*kinds: str) -> BeforeValidator:
    return BeforeValidator(lambda value: only_types(value, kinds, "Content blocks"))


TextBlocks = Annotated[
    list[Annotated[TextBlock, _offering("text")]], Field(max_length=MAX_MESSAGES, fail_fast=True)
]
Texts = Annotated[
    Annotated[str, Tag("text")] | Annotated[TextBlocks, Tag("list")], Discriminator(string_or_list)
]


class ToolResultBlock(_Block):
    """What a call gave, or why it failed."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(max_length=256)
    content: Texts | None = None
    is_error: bool | None = None


UserBlock = Annotated[
    TextBlock | ToolResultBlock, Field(discriminator="type"), _offering("text", "tool_result")
]
AssistantBlock = Annotated[
    TextBlock | ToolUseBlock, Field(discriminator="type"), _offering("text", "tool_use")
]
UserBlocks = Annotated[list[UserBlock], Field(max_length=MAX_MESSAGES, fail_fast=True)]
AssistantBlocks = Annotated[list[AssistantBlock], Field(max_length=MAX_MESSAGES, fail_fast=True)]


class UserTurn(HistoryItem):
    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("text")] | Annotated[UserBlocks, Tag("list")], Discriminator(string_or_list)
    ]


class AssistantTurn(HistoryItem):
    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("text")] | Annotated[AssistantBlocks, Tag("list")], Discriminator(string_or_list)
    ]


class SystemTurn(HistoryItem):
    """An instruction in the midst of the conversation."""

    role: Literal["system"]
    content: Texts


Turn = Annotated[UserTurn | AssistantTurn | SystemTurn, Field(discriminator="role")]


class ClientTool(Body):
    """A tool that the client runs. How soon its input is streamed is the engine's affair."""

    no_op_values: ClassVar = {"defer_loading": False, "allowed_callers": ["direct"], "input_examples": []}

    type: Literal["custom"] | None = None
    name: FunctionName
    description: str | None = None
    input_schema: JsonSchema
    strict: bool | None = None
    eager_input_streaming: bool | None = Field(None, exclude=True)
    cache_control: CacheControl | None = Field(None, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _run_by_the_client(cls, data: Any) -> Any:
        return only_types(data, ("custom",), "Tools")


class AnyToolChoice(Body):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class NamedToolChoice(Body):
    type: Literal["tool"]
    name: FunctionName
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """Models here do not think apart from their answer: what leaves it to the model is as good as off."""

    type: Literal["disabled", "adaptive"]
    display: Literal["summarized", "omitted"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_demanded(cls, data: Any) -> Any:
        return only_types(data, ("disabled", "adaptive"), "Ways of thinking")


class AnswerFormat(Body):
    type: Literal["json_schema"]
    schema_: JsonSchema = Field(alias="schema")


class OutputConfig(Body):
    """`effort` is a hint that changes nothing here."""

    format: AnswerFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(None, exclude=True)


class Edit(Body):
    """Of an earlier answer's thoughts, which there are none of, what is to be kept does not matter."""

    type: Literal["clear_thinking_20251015"]
    keep: Any = None

    @model_validator(mode="before")
    @classmethod
    def _without_effect(cls, data: Any) -> Any:
        return only_types(data, ("clear_thinking_20251015",), "Edits of the context")


class ContextManagement(Body):
    edits: list[Edit] | None = Field(None, max_length=16)


class NewThread(Body):
    """The conversation may be kept here; it is not, and comes with each request all the same."""

    type: Literal["create"]

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_continued(cls, data: Any) -> Any:
        return only_types(data, ("create",), "Threads")


class CountTokensRequest(ModelRequest):
    """POST /v1/messages/count_tokens."""

    no_op_values: ClassVar = {"mcp_servers": [], "speed": "standard"}

    messages: list[Turn] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    system: Texts | None = None
    tools: list[ClientTool] | None = Field(None, max_length=128)
    tool_choice: Annotated[AnyToolChoice | NamedToolChoice, Field(discriminator="type")] | None = None
    thinking: Thinking | None = Field(None, exclude=True)
    output_config: OutputConfig | None = None
    context_management: ContextManagement | None = Field(None, exclude=True)
    thread: NewThread | None = Field(None, exclude=True)
    cache_control: CacheControl | None = Field(None, exclude=True)

    @model_validator(mode="after")
    def _asks_for_an_answer(self) -> "CountTokensRequest":
        if self.messages[-1].role == "assistant":
            raise PydanticCustomError(
                "not_offered",
                "The last message is the assistant's; an answer cannot be continued from a beginning",
                {"below": f"messages[{len(self.messages) - 1}].role"},
            )
        return self


class Metadata(Body):
    user_id: str | None = Field(None, max_length=512)


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1, le=MAX_TOKENS)
    stop_sequences: list[Annotated[str, Field(min_length=1, max_length=256)]] | None = Field(
        None, max_length=MAX_STOPS
    )
    temperature: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, le=MAX_TOKENS)
    stream: bool | None = None
    metadata: Metadata | None = Field(None, exclude=True)
    service_tier: Literal["auto", "standard_only"] | None = Field(None, exclude=True)

"""The bodies of Anthropic's messages API, as an allow-list: text and tools of the client's own."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from serve.protocol import (
    MAX_MESSAGES,
    MAX_TOKENS,
    AboutModel,
    Body,
    FunctionName,
    JsonSchema,
    _only_types,
    _string_or_list,
)


class CacheControl(Body):
    """Prompts are cached here without being told to."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class _Cacheable(Body):
    cache_control: CacheControl | None = Field(None, exclude=True)


class TextBlock(_Cacheable):
    type: Literal["text"]
    text: str
    citations: list[Any] | None = Field(None, max_length=0, exclude=True)


class ToolUseBlock(_Cacheable):
    """A call that an earlier answer made."""

    type: Literal["tool_use"]
    id: str = Field(max_length=256)
    name: FunctionName
    input: dict[str, Any]


def _offering(*kinds: str) -> BeforeValidator:
    return BeforeValidator(lambda value: _only_types(value, kinds, "Content blocks"))


TextBlocks = Annotated[
    list[Annotated[TextBlock, _offering("text")]], Field(max_length=MAX_MESSAGES, fail_fast=True)
]
Texts = Annotated[
    Annotated[str, Tag("text")] | Annotated[TextBlocks, Tag("list")], Discriminator(_string_or_list)
]


class ToolResultBlock(_Cacheable):
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
UserBlocks = Annotated[list[UserBlock], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
AssistantBlocks = Annotated[
    list[AssistantBlock], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
]


class UserTurn(Body):
    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("text")] | Annotated[UserBlocks, Tag("list")], Discriminator(_string_or_list)
    ]


class AssistantTurn(Body):
    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("text")] | Annotated[AssistantBlocks, Tag("list")], Discriminator(_string_or_list)
    ]


Turn = Annotated[UserTurn | AssistantTurn, Field(discriminator="role")]


class ClientTool(_Cacheable):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: FunctionName
    description: str | None = None
    input_schema: JsonSchema

    @model_validator(mode="before")
    @classmethod
    def _run_by_the_client(cls, data: Any) -> Any:
        return _only_types(data, ("custom",), "Tools")


class AnyToolChoice(Body):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool | None = None


class NamedToolChoice(Body):
    type: Literal["tool"]
    name: FunctionName
    disable_parallel_tool_use: bool | None = None


class ThinkingOff(Body):
    type: Literal["disabled"]


class CountTokensRequest(AboutModel):
    """POST /v1/messages/count_tokens."""

    messages: list[Turn] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    system: Texts | None = None
    tools: list[ClientTool] | None = Field(None, max_length=128)
    tool_choice: Annotated[AnyToolChoice | NamedToolChoice, Field(discriminator="type")] | None = None
    thinking: ThinkingOff | None = Field(None, exclude=True)

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
        None, max_length=4
    )
    temperature: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, le=MAX_TOKENS)
    stream: bool | None = None
    metadata: Metadata | None = Field(None, exclude=True)
    service_tier: Literal["auto", "standard_only"] | None = Field(None, exclude=True)

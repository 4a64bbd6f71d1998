"""The bodies of /tokenize and /detokenize, in vLLM's shape, as an allow-list."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from serve.protocol.body import MAX_MESSAGES, ModelRequest, TokenId
from serve.protocol.chat import Message, NamedTool, Tool, check_tools


class TokenizeRequest(ModelRequest):
    """POST /tokenize: a prompt as /v1/completions reads it, or messages as /v1/chat/completions does."""

    no_op_values: ClassVar = {"tools": []}

    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    add_generation_prompt: Literal[True] | None = Field(None, exclude=True)
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = Field(
        None, description="Extension: which of the tools the prompt shows."
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError(
                "fields_disagree", "Give prompt or messages, one of them", {"below": "prompt"}
            )
        for name in ("tools", "tool_choice"):
            if self.messages is None and getattr(self, name) is not None:
                raise PydanticCustomError("fields_disagree", "Only allowed with messages", {"below": name})
        check_tools(self.tools or [], self.tool_choice)
        return self


class DetokenizeRequest(ModelRequest):
    """POST /detokenize."""

    tokens: Annotated[list[TokenId], Field(fail_fast=True)]

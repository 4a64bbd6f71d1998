"""The bodies of /tokenize and /detokenize, in vLLM's shape, as an allow-list."""

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from serve.protocol import MAX_MESSAGES, AboutModel, Message, TokenId, Tool


class TokenizeRequest(AboutModel):
    """POST /tokenize: a prompt as /v1/completions reads it, or messages as /v1/chat/completions does."""

    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    add_generation_prompt: Literal[True] | None = Field(None, exclude=True)
    tools: list[Tool] | None = Field(None, min_length=1, max_length=128)

    @model_validator(mode="after")
    def _one_of_two(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError(
                "fields_disagree", "Give prompt or messages, one of them", {"below": "prompt"}
            )
        if self.messages is None and self.tools is not None:
            raise PydanticCustomError("fields_disagree", "Only allowed with messages", {"below": "tools"})
        return self


class DetokenizeRequest(AboutModel):
    """POST /detokenize."""

    tokens: Annotated[list[TokenId], Field(fail_fast=True)]

"""The body of OpenAI's completions, and the prompts that it shares with embeddings."""

from typing import Annotated, Any, ClassVar

from pydantic import Discriminator, Field, Tag, model_validator

from serve.protocol.body import MAX_TOKENS, TokenId, disagree
from serve.protocol.sampling import SamplingFields


def _prompt_kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    first = value[0] if isinstance(value, list) and value else ""
    return {int: "tokens", list: "token_lists"}.get(type(first), "texts")


Tokens = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(min_length=1, max_length=2048, fail_fast=True), Tag("texts")]
    | Annotated[Tokens, Tag("tokens")]
    | Annotated[list[Tokens], Field(min_length=1, max_length=2048, fail_fast=True), Tag("token_lists")],
    Discriminator(_prompt_kind),
]


class CompletionRequest(SamplingFields):
    """POST /v1/completions."""

    no_op_values: ClassVar = {"echo": False, "best_of": 1, "suffix": ""}

    prompt: Prompt
    logprobs: int | None = Field(None, ge=0, le=20)
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    echo: bool | None = Field(
        None, description="The prompt comes first in the text; with logprobs, its log-probabilities, too."
    )

    @model_validator(mode="after")
    def _something_is_asked(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            disagree("max_tokens", "0 is only allowed when echo is true")
        return self

"""Sampling parameters that chat and completions share."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from serve.protocol.body import MAX_STOPS, MAX_TOKENS, Body, Labels


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(None, exclude=True)


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

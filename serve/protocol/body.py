"""The base of every request body: strict objects, and the types that several requests share.

A parameter that is unknown, or known to OpenAI and not offered here, is refused by name; nothing is silently ignored
except the labels listed in `Labels`.
"""

import json
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

MAX_SCHEMA_BYTES = 128 * 1024
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


class Body(BaseModel):
    """Strict object: no coercion, no unknown key.

    A key is 'not given' where its value is `null` (for a known key) or asks for nothing.
    """

    model_config = ConfigDict(strict=True, extra="forbid", serialize_by_alias=True, protected_namespaces=())

    no_op_values: ClassVar[dict[str, Any]] = {}
    """For some keys the value that changes nothing: clients send it by default."""

    @model_validator(mode="before")
    @classmethod
    def _drop_what_is_not_given(cls, data: Any) -> Any:
        if isinstance(data, dict) and (None in data.values() or not cls.no_op_values.keys().isdisjoint(data)):
            return {key: value for key, value in data.items() if not cls._not_given(key, value)}
        return data

    @classmethod
    def _not_given(cls, key: str, value: Any) -> bool:
        if value is None:
            return key in NOT_OFFERED or key in field_names(cls)
        nothing = cls.no_op_values.get(key)
        return nothing is not None and type(value) is type(nothing) and value == nothing


class HistoryItem(Body):
    """A piece of the history, as a client kept it from an earlier answer: `null` is 'not given' for any key."""

    @classmethod
    def _not_given(cls, key: str, value: Any) -> bool:
        return value is None or super()._not_given(key, value)


def field_names(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


class ModelRequest(Body):
    """A request that names a model."""

    model: ModelName


WHOLE_CONTEXT = -1
"""As ``truncate_prompt_tokens``: as many tokens as the model reads."""

Truncation = Annotated[
    Literal[-1] | Annotated[int, Field(ge=1)] | None,
    Field(
        description="So many tokens of each text, or pair, are read, special ones counted, and the rest left out; -1: as "
        "many as the model reads. Without it a text that is too long is refused."
    ),
]


class Labels(ModelRequest):
    """Parameters that carry no meaning for the answer: accepted, checked, and not passed on."""

    user: str | None = Field(None, max_length=512, exclude=True)
    metadata: dict[str, str] | None = Field(None, max_length=16, exclude=True)
    safety_identifier: str | None = Field(None, max_length=512, exclude=True)
    prompt_cache_key: str | None = Field(None, max_length=512, exclude=True)
    service_tier: Literal["auto", "default", "flex"] | None = Field(None, exclude=True)


def only_types(data: Any, offered: tuple[str, ...], what: str) -> Any:
    """In a validator: refuses by name a ``type`` that is not among the ``offered``."""
    kind = data.get("type") if isinstance(data, dict) else None
    if isinstance(kind, str) and kind not in offered:
        raise PydanticCustomError(
            "not_offered",
            "{what} of type '{kind}' are not supported; supported: {offered}",
            {"what": what, "kind": kind[:64], "offered": ", ".join(offered), "below": "type"},
        )
    return data


def string_or_list(value: Any) -> str:
    """The tag of a value that is a text or a list."""
    return "text" if isinstance(value, str) else "list"


def disagree(field: str, message: str) -> None:
    """In a validator: refuses the body for ``field``, which contradicts another."""
    raise PydanticCustomError("fields_disagree", message, {"below": field})  # type: ignore[arg-type]

"""A request as it is sent to an engine."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jiter
from pydantic_core import to_json

from serve.gateway.formats.schema_check import strict_schemas
from serve.protocol.parsing import encode
from serve.protocol.sampling import SamplingFields

CONTINUES, ANSWERS = "generate", "text2text"
"""The tasks whose models make text; the second from a source, which is no chat."""


@dataclass(frozen=True, slots=True)
class Work:
    """One request for an engine, whichever takes it."""

    path: str
    body: bytes
    model: str
    tasks: tuple[str, ...]
    """Of models that can do it."""
    stream: bool
    strip_usage: bool = False
    strict: Mapping[str | None, dict[str, Any]] = field(default_factory=dict)
    """JSON schemas that the answer must satisfy: of its text under None, of tool calls under the functions' names."""

    def to(self, model: str) -> "Work":
        """The same request for another model, or for the same under another name."""
        if model == self.model:
            return self
        return replace(self, model=model, body=to_json(jiter.from_json(self.body) | {"model": model}))


def generation(path: str, request: SamplingFields, keep_usage: bool = False) -> Work:
    """The work of a generation. Engines are always asked for usage; clients see it only if they asked."""
    stream = bool(request.stream)
    changes: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
    strip_usage = not (keep_usage or request.include_usage)
    body = encode(request, **changes)
    tasks = (CONTINUES, ANSWERS) if path == "/v1/completions" else (CONTINUES,)
    return Work(path, body, request.model, tasks, stream, strip_usage, strict_schemas(request))

"""What to ask an engine for."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jiter
from pydantic_core import to_json

from serve.gateway.formats.schema_check import strict_schemas
from serve.protocol.parsing import encode
from serve.protocol.sampling import SamplingFields


@dataclass(frozen=True, slots=True)
class Work:
    """What to ask an engine for."""

    path: str
    body: bytes
    model: str
    task: str
    stream: bool
    strip_usage: bool = False
    strict: Mapping[str | None, dict[str, Any]] = field(default_factory=dict)
    """Schemas that the answer must keep to: of its text under None, of calls under the functions' names."""

    def to(self, model: str) -> "Work":
        """The same for another model, or under another name."""
        if model == self.model:
            return self
        return replace(self, model=model, body=to_json(jiter.from_json(self.body) | {"model": model}))


def generation(path: str, request: SamplingFields, keep_usage: bool = False) -> Work:
    """Engines are always asked for usage; clients see it only if they asked."""
    stream = bool(request.stream)
    changes: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
    strip_usage = not (keep_usage or request.include_usage)
    body = encode(request, **changes)
    return Work(path, body, request.model, "generate", stream, strip_usage, strict_schemas(request))

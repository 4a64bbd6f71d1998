"""A batch's file: one request per line, each checked before the first is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from everlearn.errors import EverlearnError, InvalidInput
from everlearn.registry.tables import ApiKey
from everlearn.settings import ServeSettings
from serve.gateway.formats.schema_check import strict_schemas
from serve.gateway.limits.auth import check_scope
from serve.gateway.routing.work import Work
from serve.protocol.body import Body
from serve.protocol.chat import ChatRequest
from serve.protocol.completions import CompletionRequest
from serve.protocol.embeddings import EmbeddingRequest
from serve.protocol.parsing import encode, parse, validate
from serve.protocol.sampling import SamplingFields

ENDPOINTS = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
}
MAX_LINES = 50_000
MAX_FLAWS = 20
"""At most this many are reported, so that a client can correct them together."""


class BatchLine(Body):
    """One line: OpenAI's format."""

    custom_id: str = Field(min_length=1, max_length=512)
    method: Literal["POST"]
    url: str = Field(max_length=256)
    body: dict[str, Any]


@dataclass(frozen=True)
class CheckedLine:
    """A line of the file; ``number`` counts from 1, empty lines too."""

    number: int
    custom_id: str
    work: Work


def read_lines(
    path: Path, endpoint: str, key: ApiKey | None, settings: ServeSettings
) -> Iterator[CheckedLine | Flaw]:
    """The requests of a file, and a flaw for each line that is not one."""
    for number, data in _split(path, settings.max_body_bytes):
        try:
            yield _read(number, data, endpoint, key, settings)
        except Flaw as flaw:
            yield flaw


def check(
    path: Path, endpoint: str, key: ApiKey | None, settings: ServeSettings
) -> int | Sequence[dict[str, Any]]:
    """How many requests there are, or what is wrong with the file, as OpenAI's ``errors``."""
    seen: dict[str, int] = {}
    flaws: list[Flaw] = []
    count = 0
    for line in read_lines(path, endpoint, key, settings):
        count += 1
        if count > MAX_LINES:
            flaws.append(Flaw(line.number, "too_many_requests", f"a batch has at most {MAX_LINES} requests"))
            break
        if isinstance(line, CheckedLine):
            first = seen.setdefault(line.custom_id, line.number)
            if first == line.number:
                continue
            line = Flaw(line.number, "duplicate_custom_id", f"that of line {first}", "custom_id")
        flaws.append(line)
        if len(flaws) == MAX_FLAWS:
            break
    if not count:
        flaws.append(Flaw(1, "empty_file", "the file holds no request"))
    return [flaw.as_error() for flaw in flaws] or count


class Flaw(InvalidInput):
    """What is wrong with a line."""

    def __init__(self, number: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.number = number
        self.code = code

    def as_error(self) -> dict[str, Any]:
        return {"code": self.code, "line": self.number, "message": self.message, "param": self.param}


def _split(path: Path, limit_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Lines that are not empty. One that is too long is cut there, and then is no JSON: never all in memory."""
    with path.open("rb") as file:
        number = 0
        while data := file.readline(limit_bytes):
            number += 1
            whole = data.endswith(b"\n")
            while not whole and (rest := file.readline(limit_bytes)):
                whole = rest.endswith(b"\n")
            if data.strip():
                yield number, data.strip()


def _read(
    number: int, data: bytes, endpoint: str, key: ApiKey | None, settings: ServeSettings
) -> CheckedLine:
    try:
        if len(data) >= settings.max_body_bytes:
            raise Flaw(number, "request_too_large", f"a request has at most {settings.max_body_bytes} bytes")
        line = parse(BatchLine, data)
        if line.url != endpoint:
            raise Flaw(
                number, "mismatched_url", f"url is {line.url!r}, and the batch is for {endpoint!r}", "url"
            )
        return CheckedLine(number, line.custom_id, _work(line, endpoint, key, settings))
    except Flaw:
        raise
    except EverlearnError as error:
        raise Flaw(number, error.code, error.message, error.param) from None


def _work(line: BatchLine, endpoint: str, key: ApiKey | None, settings: ServeSettings) -> Work:
    try:
        request = validate(ENDPOINTS[endpoint], line.body)
        check_scope(key, request.model)
    except EverlearnError as error:
        param = f"body.{error.param}" if error.param else "body"
        raise type(error)(error.message, param=param) from None
    if not isinstance(request, SamplingFields):
        return Work(endpoint, encode(request), request.model, request.tasks, stream=False)
    if request.stream:
        raise InvalidInput("a batch's answers are no streams", param="body.stream")
    if (request.n or 1) > settings.max_n:
        raise InvalidInput(f"this server allows at most {settings.max_n}", param="body.n")
    body = encode(request, service_tier="flex")
    return Work(endpoint, body, request.model, "generate", stream=False, strict=strict_schemas(request))

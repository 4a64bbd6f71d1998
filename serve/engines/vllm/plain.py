"""vLLM's answers as the contract has them: OpenAI's fields alone, what is told before the first byte, plain errors."""

import json
from collections.abc import Iterator
from typing import Any

import orjson
from starlette.types import Message, Send

from serve.answer_facts import AnswerFacts
from serve.protocol.parsing import error_body

Json = dict[str, Any]

FIELDS = {"id", "object", "created", "model", "choices", "usage", "system_fingerprint"}
CHOICE = {"index", "message", "delta", "text", "logprobs", "finish_reason", "stop_reason"}
MESSAGE = {"role", "content", "refusal", "annotations", "tool_calls"}
USAGE = {"prompt_tokens", "completion_tokens", "total_tokens"}
EVENT = b"data: {"


class Plain:
    """`send` for vLLM's application: holds the head back until the first words tell how long the prompt is.

    `sampling`: the temperature and top_p that the answer is sampled with.
    """

    def __init__(self, send: Send, sampling: dict[str, float]) -> None:
        self._send = send
        self._sampling = sampling
        self._start: Message | None = None
        self._streams = False
        self._held = b""

    async def __call__(self, message: Message) -> None:
        """ASGI's send."""
        if message["type"] == "http.response.start":
            self._start = message
            self._streams = message["status"] < 400 and dict(message["headers"]).get(
                b"content-type", b""
            ).startswith(b"text/event-stream")
        elif self._streams:
            await self._stream(message)
        else:
            self._held += message.get("body", b"")
            if not message.get("more_body"):
                await self._whole()

    async def _stream(self, message: Message) -> None:
        """vLLM sends whole events, mostly one at a time."""
        counted: Json = {}
        body = b"".join(_events(message.get("body", b""), counted))
        if self._start is not None:
            await self._begin(counted, self._start["headers"])
        await self._send({**message, "body": body})

    async def _whole(self) -> None:
        assert self._start is not None
        status = self._start["status"]
        try:
            answer = json.loads(self._held)
        except ValueError:
            answer = None
        if status >= 400:
            body = json.dumps(_plain_error(status, answer)).encode()
        elif isinstance(answer, dict) and "choices" in answer:
            body = orjson.dumps(_plain(answer))
        else:
            body = self._held
        counted = answer.get("usage") or {} if isinstance(answer, dict) else {}
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self._begin(counted, headers)
        await self._send({"type": "http.response.body", "body": body})

    async def _begin(self, counted: Json, headers: list[tuple[bytes, bytes]]) -> None:
        assert self._start is not None
        told = AnswerFacts(
            prompt_tokens=counted.get("prompt_tokens"), cached_tokens=_cached(counted), **self._sampling
        )
        more = [(name.encode(), value.encode()) for name, value in told.headers().items()]
        await self._send({**self._start, "headers": [*headers, *more]})
        self._start = None


def _events(body: bytes, counted: Json) -> Iterator[bytes]:
    """Each event with OpenAI's fields; usage stays in the last one alone, and is put into `counted`."""
    for event in body.splitlines(keepends=True):
        if not event.startswith(EVENT):
            yield event
            continue
        chunk = orjson.loads(event[len(EVENT) - 1 :])
        if chunk.get("choices"):
            counted |= chunk.pop("usage", None) or {}
        plain = _plain_error(500, chunk) if "error" in chunk else _plain(chunk)
        yield b"data: " + orjson.dumps(plain) + b"\n"


def _plain(answer: Json) -> Json:
    """A chunk or a whole answer without vLLM's own fields."""
    plain = {name: value for name, value in answer.items() if name in FIELDS}
    for place, choice in enumerate(plain.get("choices") or ()):
        kept = {name: value for name, value in choice.items() if name in CHOICE}
        if not isinstance(kept.get("stop_reason"), str):  # a token's id is vLLM's own affair
            kept.pop("stop_reason", None)
        for name in ("message", "delta"):
            if name in kept:
                kept[name] = {key: value for key, value in kept[name].items() if key in MESSAGE}
        if "message" in kept:
            kept["message"]["annotations"] = []
        plain["choices"][place] = kept
    if counted := plain.get("usage"):
        details = {"prompt_tokens_details": {"cached_tokens": _cached(counted)}}
        plain["usage"] = {name: counted[name] for name in USAGE} | details
    return plain


def _cached(counted: Json) -> int:
    return (counted.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


def _plain_error(status: int, answer: Any) -> Json:
    """vLLM's error with OpenAI's type, and a text as code; one inside a stream has its own status."""
    try:
        told = answer["error"]
        message, param = str(told["message"]), told.get("param")
        status = told["code"] if isinstance(told.get("code"), int) else status
    except (KeyError, TypeError):
        message, param = "the engine failed", None
    kind = "server_error" if status >= 500 else "invalid_request_error"
    code = "context_length_exceeded" if "context length" in message or "max_model_len" in message else None
    return error_body(message, kind, param, code)

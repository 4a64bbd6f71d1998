"""One request's body read, and its answer written: whole, or as a stream of events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from everlearn.errors import EverlearnError, InvalidInput
from serve.protocol.parsing import error_body
from serve.tracing import Span

MAX_BODY_BYTES = 64 * 1024**2
"""The gateway's limit is the one for clients; this one only protects the engine's memory."""

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Responder:
    """One request's way back to the client, and the news that the client left."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.receive = receive
        self.send = send
        self.span: Span | None = None
        self.salt = ""
        """Whose request it is, as the gateway says: what was computed for one is not reused for another."""
        self.started = False
        self.headers: dict[str, str] = {}
        """Sent with the answer, besides those that every answer has."""
        self.gone = False
        self.on_gone: Callable[[], object] = lambda: None
        self.usage: Callable[[], dict[str, Any]] | None = None
        """What the request has used so far, once its prompt is counted."""

    async def read_body(self) -> bytes:
        """The whole body; raises InvalidInput beyond the limit."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                return b""
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > MAX_BODY_BYTES:
                raise InvalidInput(f"the body is larger than {MAX_BODY_BYTES} bytes")
            if not message.get("more_body"):
                return b"".join(parts)

    async def watch(self) -> None:
        """Returns when the client has left, after calling `on_gone`."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self.on_gone()

    async def json(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """A whole JSON answer."""
        await self.bytes(orjson.dumps(body), status, "application/json", headers or {})

    async def bytes(self, body: bytes, status: int, content_type: str, headers: dict[str, str]) -> None:
        """A whole answer."""
        fields = {"content-type": content_type, "content-length": str(len(body)), **headers}
        await self._start(status, fields)
        await self.send({"type": "http.response.body", "body": body})

    async def event(self, events: bytes) -> None:
        """Server-sent events, as part of a stream that goes on."""
        if not self.started:
            await self._start(
                200, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store"}
            )
        await self.send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self) -> None:
        """The end of a stream."""
        await self.send({"type": "http.response.body", "body": b""})

    async def error(self, error: EverlearnError) -> None:
        """An error: a status before the first byte, an event and the end after it."""
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        body = error_body(error.message, kind, error.param, error.code)
        if self.started:
            await self.event(b"data: " + orjson.dumps(body) + b"\n\n")
            await self.end()
        else:
            after = getattr(error, "retry_after_s", None)
            headers = {"retry-after": str(int(after) or 1)} if after is not None else {}
            await self.json(body, error.status, headers)

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        self.started = True
        fields = [(name.encode(), value.encode()) for name, value in (headers | self.headers).items()]
        await self.send({"type": "http.response.start", "status": status, "headers": fields})

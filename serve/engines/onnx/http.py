"""The engine's HTTP: a bare ASGI application, because each token of each stream passes through it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import orjson
import structlog
from prometheus_client import generate_latest

from everlearn.errors import EverlearnError, InvalidInput, NotFound
from serve.engines import NO_MEMORY, NUMBER_HEADER, SALT_HEADER, USED
from serve.engines.onnx.memory import lacks_memory
from serve.engines.onnx.used import Used
from serve.protocol.chat import error_body
from serve.tracing import Span, Tracer

log = structlog.get_logger()

MAX_BODY_BYTES = 64 * 1024**2
"""The gateway's limit is the one for clients; this one only protects the engine's memory."""

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Backend(Protocol):
    """What a kind of model offers: its routes, the tokens it takes, and whether it works."""

    routes: dict[str, Callable[[bytes, Exchange], Awaitable[None]]]

    @property
    def context(self) -> int: ...

    @property
    def broken(self) -> bool: ...


class Exchange:
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


class Application:
    """Routes of one engine process."""

    def __init__(self, model: str, backend: Backend, tracer: Tracer | None = None) -> None:
        self.model = model
        self.backend = backend
        self.tracer = tracer
        self.used = Used()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            return
        exchange = Exchange(receive, send)
        try:
            if scope["method"] == "GET":
                await self._get(scope["path"], exchange)
            else:
                await self._post(scope, exchange)
        except EverlearnError as error:
            await exchange.error(error)
        except Exception as error:
            log.exception("request failed", path=scope["path"])
            if lacks_memory(error):
                os._exit(NO_MEMORY)
            await exchange.error(EverlearnError(f"internal error: {type(error).__name__}"))

    async def _get(self, path: str, exchange: Exchange) -> None:
        if path == "/health":
            broken = self.backend.broken
            state = {"status": "broken" if broken else "ready", "context": self.backend.context}
            await exchange.json(state, 503 if broken else 200)
        elif path == "/metrics":
            await exchange.bytes(generate_latest(), 200, "text/plain; version=0.0.4; charset=utf-8", {})
        elif path == "/v1/models":
            entry = {"id": self.model, "object": "model", "created": 0, "owned_by": "everlearn"}
            await exchange.json({"object": "list", "data": [entry]})
        elif path.startswith(USED) and (usage := self.used.of(path.removeprefix(USED))):
            await exchange.json(usage)
        else:
            raise NotFound(f"no such path: {path}")

    async def _post(self, scope: Message, exchange: Exchange) -> None:
        path = scope["path"]
        route = self.backend.routes.get(path)
        if route is None:
            offered = ", ".join(sorted(self.backend.routes))
            raise NotFound(f"the model {self.model} does not offer {path}; it offers {offered}")
        body = await exchange.read_body()
        if exchange.gone:
            return
        exchange.salt = dict(scope["headers"]).get(SALT_HEADER.encode(), b"").decode("latin-1")
        if self.tracer:
            exchange.span = self.tracer.serve(f"engine {path}", scope["headers"])
        watcher = asyncio.create_task(exchange.watch())
        error: str | None = "broke off"
        try:
            with self.used.counting(_number(scope), exchange):
                await route(body, exchange)
            error = None
        except EverlearnError as refused:
            error = refused.code
            raise
        except asyncio.CancelledError:
            if not exchange.gone:
                raise
        finally:
            watcher.cancel()
            if exchange.span:
                exchange.span.end({"gen_ai.request.model": self.model}, error)


def _number(scope: Message) -> str:
    wanted = NUMBER_HEADER.encode()
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")

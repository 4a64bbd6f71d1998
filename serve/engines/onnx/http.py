"""The engine's HTTP: a bare ASGI application, because each token of each stream passes through it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
from prometheus_client import generate_latest

from everlearn.errors import EverlearnError, NotFound
from serve.engines import NO_MEMORY, NUMBER_HEADER, SALT_HEADER, USED
from serve.engines.onnx.memory import lacks_memory
from serve.engines.onnx.responder import Message, Receive, Responder, Send
from serve.engines.onnx.used import Used
from serve.tracing import Tracer

log = structlog.get_logger()


class Backend(Protocol):
    """What a kind of model offers: its routes, the tokens it takes, and whether it works."""

    routes: dict[str, Callable[[bytes, Responder], Awaitable[None]]]

    @property
    def context(self) -> int: ...

    @property
    def broken(self) -> bool: ...


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
        responder = Responder(receive, send)
        try:
            if scope["method"] == "GET":
                await self._get(scope["path"], responder)
            else:
                await self._post(scope, responder)
        except EverlearnError as error:
            await responder.error(error)
        except Exception as error:
            log.exception("request failed", path=scope["path"])
            if lacks_memory(error):
                os._exit(NO_MEMORY)
            await responder.error(EverlearnError(f"internal error: {type(error).__name__}"))

    async def _get(self, path: str, responder: Responder) -> None:
        if path == "/health":
            broken = self.backend.broken
            state = {"status": "broken" if broken else "ready", "context": self.backend.context}
            await responder.json(state, 503 if broken else 200)
        elif path == "/metrics":
            await responder.bytes(generate_latest(), 200, "text/plain; version=0.0.4; charset=utf-8", {})
        elif path == "/v1/models":
            entry = {"id": self.model, "object": "model", "created": 0, "owned_by": "everlearn"}
            await responder.json({"object": "list", "data": [entry]})
        elif path.startswith(USED) and (usage := self.used.of(path.removeprefix(USED))):
            await responder.json(usage)
        else:
            raise NotFound(f"no such path: {path}")

    async def _post(self, scope: Message, responder: Responder) -> None:
        path = scope["path"]
        route = self.backend.routes.get(path)
        if route is None:
            offered = ", ".join(sorted(self.backend.routes))
            raise NotFound(f"the model {self.model} does not offer {path}; it offers {offered}")
        body = await responder.read_body()
        if responder.gone:
            return
        responder.salt = dict(scope["headers"]).get(SALT_HEADER.encode(), b"").decode("latin-1")
        if self.tracer:
            responder.span = self.tracer.serve(f"engine {path}", scope["headers"])
        watcher = asyncio.create_task(responder.watch())
        error: str | None = "broke off"
        try:
            with self.used.counting(_number(scope), responder):
                await route(body, responder)
            error = None
        except EverlearnError as refused:
            error = refused.code
            raise
        except asyncio.CancelledError:
            if not responder.gone:
                raise
        finally:
            watcher.cancel()
            if responder.span:
                responder.span.end({"gen_ai.request.model": self.model}, error)


def _number(scope: Message) -> str:
    wanted = NUMBER_HEADER.encode()
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == wanted), "")

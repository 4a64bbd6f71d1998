"""The middleware before vLLM's server: only the contract's routes, requests checked by name, errors in OpenAI's shape."""

import asyncio
import json
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everlearn.errors import EverlearnError, InvalidInput, NotFound
from serve.engines import LEFT_OPEN, SALT_HEADER
from serve.engines.grammar import header_text
from serve.engines.vllm.answers import CallReader
from serve.engines.vllm.plain import Plain
from serve.engines.vllm.requests import Asked, Requests
from serve.protocol.parsing import error_body

MAX_BODY_BYTES = 64 * 1024**2
"""The gateway's limit is the one for clients; this one only protects the engine's memory."""

TRANSLATIONS = {
    "/v1/chat/completions": Requests.chat,
    "/v1/completions": Requests.completion,
    "/tokenize": Requests.tokenize,
    "/detokenize": Requests.detokenize,
}


class Front:
    """ASGI middleware; vLLM adds it to its application by the flag --middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.requests: Requests | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI entry."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self._route(scope, receive, send)
        except EverlearnError as error:
            kind = "server_error" if error.status >= 500 else "invalid_request_error"
            answer = JSONResponse(
                error_body(error.message, kind, error.param, error.code), status_code=error.status
            )
            await answer(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path, vllm = scope["method"], scope["path"], scope["app"].state
        if method == "GET" and path == "/health":
            await health(vllm)(scope, receive, send)
        elif method == "GET" and path == "/v1/models":
            model = vllm.args.served_model_name[0]
            entry = {"id": model, "object": "model", "created": 0, "owned_by": "everlearn"}
            await JSONResponse({"object": "list", "data": [entry]})(scope, receive, send)
        elif method == "GET" and path == "/metrics":
            await self.app(scope, receive, send)
        elif method == "POST" and path in TRANSLATIONS:
            body = await read_body(receive)
            if body is None:
                return
            asked, translated, sampling = await asyncio.to_thread(
                self._translate,
                vllm,
                path,
                body,
                dict(scope["headers"]).get(SALT_HEADER.encode(), b"").decode("latin-1"),
            )
            if asked.left_open:
                send = with_header(send, LEFT_OPEN, header_text(asked.left_open))
            if asked.reading:
                send = CallReader(send, asked.reading)
            await self.app(*with_body(scope, receive, translated), Plain(send, sampling))
        else:
            raise NotFound(f"no such path: {method} {path}")

    def _translate(
        self, vllm: Any, path: str, body: bytes, salt: str
    ) -> tuple[Asked, bytes, dict[str, float]]:
        if self.requests is None:
            context = vllm.vllm_config.model_config.max_model_len
            self.requests = Requests(Path(vllm.args.model), bool(vllm.args.speculative_config), context)
        served = {"model": vllm.args.served_model_name[0]}  # a client may have said `name@version`
        asked = TRANSLATIONS[path](self.requests, body)
        if salt and path.startswith("/v1/"):
            served["cache_salt"] = salt  # what was computed for one client is not reused for another
        return asked, json.dumps(asked.body | served).encode(), self.requests.sampled(asked.body)


def health(vllm: Any) -> JSONResponse:
    """What the supervisor asks for: whether the engine works, and how many tokens a request may hold."""
    engine = vllm.engine_client
    state = {
        "status": "broken" if engine.errored else "ready",
        "context": vllm.vllm_config.model_config.max_model_len,
    }
    return JSONResponse(state, status_code=503 if engine.errored else 200)


async def read_body(receive: Receive) -> bytes | None:
    """The whole body; None when the client left. Raises InvalidInput beyond the limit."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY_BYTES:
            raise InvalidInput(f"the body is larger than {MAX_BODY_BYTES} bytes")
        if not message.get("more_body"):
            return b"".join(parts)


def with_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """The same request with another body; afterwards `receive` tells of the client's leaving, as before."""
    headers = [
        (name, value) for name, value in scope["headers"] if name not in (b"content-length", b"content-type")
    ]
    headers += [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
    given = False

    async def receive_body() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return {**scope, "headers": headers}, receive_body


def with_header(send: Send, name: str, value: str) -> Send:
    """`send`, with one more header of the answer."""

    async def send_with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (name.encode(), value.encode())]}
        await send(message)

    return send_with_header

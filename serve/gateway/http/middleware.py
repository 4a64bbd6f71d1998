"""The outermost layer: every request's id, headers, log line, metrics and trace, and the last error handler."""

from typing import Literal

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everlearn.errors import EverlearnError
from serve.gateway.http.exchange import UNKNOWN, Exchange, request_id
from serve.gateway.http.failures import answer
from serve.gateway.http.logs import where
from serve.gateway.http.metrics import Metrics
from serve.tracing import Span, Tracer

CLIENT_GONE = 499
POLLED = frozenset({"/health", "/ready", "/metrics", "/console/state"})

log = structlog.get_logger()


class Internal(EverlearnError):
    """A bug of this program; the log says where."""

    code = "internal_error"


class RequestMiddleware:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, metrics: Metrics, tracer: Tracer | None = None) -> None:
        self.app = app
        self.metrics = metrics
        self.tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        sent = next((value for name, value in scope["headers"] if name == b"x-request-id"), None)
        exchange = scope["everlearn.exchange"] = Exchange(request_id(sent))
        if self.tracer and scope["path"] not in POLLED:
            exchange.span = self.tracer.serve(scope["method"], scope["headers"])

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", exchange.id.encode()),
                    *exchange.headers,
                ]
            await send(message)

        try:
            await self.app(scope, receive, with_headers)
        except ClientDisconnect:
            exchange.status = CLIENT_GONE
        except Exception as error:  # noqa: BLE001 - the last handler; nothing above would answer in JSON
            log.error("internal_error", request_id=exchange.id, place=where(error))
            if exchange.status:
                raise RuntimeError("the answer broke off") from None
            message = f"The server failed on this request. Its id is {exchange.id}."
            await answer(Internal(message), exchange.describe)(scope, receive, with_headers)
        finally:
            exchange.end()
            self._record(exchange, scope)

    def _record(self, exchange: Exchange, scope: Scope) -> None:
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        status = exchange.status
        self.metrics.requests.labels(route, exchange.model, str(status)).inc()
        self.metrics.duration.labels(route).observe(exchange.elapsed_s())
        for kind in ("prompt_tokens", "completion_tokens"):
            if count := exchange.tokens(kind):
                self.metrics.tokens.labels(exchange.model, kind.removesuffix("_tokens")).inc(count)
        if exchange.error or status >= 400:
            self.metrics.errors.labels(exchange.model, exchange.error or f"http_{status}").inc()
        if exchange.replica and (outcome := _outcome(exchange)):
            self.metrics.count_version(exchange.replica, outcome)
        if exchange.span:
            _trace(exchange.span, exchange, route)
        level = log.debug if route in POLLED else log.info
        level(
            "request",
            request_id=exchange.id,
            method=scope["method"] if scope["method"].isalpha() else "?",
            route=route,
            status=status,
            model=exchange.model,
            key=exchange.key.id if exchange.key else None,
            error=exchange.error,
            duration_ms=round(exchange.elapsed_s() * 1e3, 2),
            first_token_ms=None if exchange.first_token_s is None else round(exchange.first_token_s * 1e3, 2),
            prompt_tokens=exchange.tokens("prompt_tokens"),
            completion_tokens=exchange.tokens("completion_tokens"),
        )


def _outcome(exchange: Exchange) -> Literal["answered", "failed"] | None:
    """Whether the engine answered or failed; None where the client was the cause."""
    if exchange.status >= 500 or (exchange.status == 200 and exchange.error not in (None, "slow_reader")):
        return "failed"
    return "answered" if exchange.status == 200 and not exchange.error else None


def _trace(span: Span, exchange: Exchange, route: str) -> None:
    """End the request's span with the fields of its log line."""
    if exchange.first_token_s is not None:
        span.event("first token", exchange.elapsed_s() - exchange.first_token_s)
    span.rename(route)
    known = exchange.model != UNKNOWN
    attributes = {
        "http.route": route,
        "http.response.status_code": exchange.status,
        "gen_ai.request.model": exchange.model if known else None,
        "gen_ai.usage.input_tokens": exchange.tokens("prompt_tokens") if known else None,
        "gen_ai.usage.output_tokens": exchange.tokens("completion_tokens") if known else None,
        "everlearn.version": exchange.replica.name if exchange.replica else None,
        "everlearn.request_id": exchange.id,
        "everlearn.key": exchange.key.id if exchange.key else None,
    }
    failed = exchange.status >= 500 or (exchange.status == 200 and exchange.error)
    span.end(attributes, (exchange.error or str(exchange.status)) if failed else None)

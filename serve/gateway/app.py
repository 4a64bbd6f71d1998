"""The gateway's routes. Start reading here: a request comes in, `_accept` checks it, `Relay` answers it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from everlearn.errors import EverlearnError, InvalidInput
from everlearn.redis_address import redis_url
from everlearn.registry.database import START_PATIENCE_S, open_database
from everlearn.registry.tables import ApiKey
from everlearn.settings import Settings
from serve.gateway.formats.messages import add_messages
from serve.gateway.formats.responses import ResponseShape, to_chat
from serve.gateway.formats.schema_check import SchemaChecks
from serve.gateway.http.body import read_body
from serve.gateway.http.door import Door
from serve.gateway.http.exchange import Exchange, exchange_of
from serve.gateway.http.failures import Draining, Overloaded, answer
from serve.gateway.http.guard import Guard
from serve.gateway.http.metrics import Metrics
from serve.gateway.limits.auth import Doorkeeper, check_scope
from serve.gateway.limits.cost import expected
from serve.gateway.limits.meter import Meter
from serve.gateway.limits.quota import Quotas, reservable
from serve.gateway.pages.openapi import POST_ERRORS, document, error_responses
from serve.gateway.pages.static import add_pages
from serve.gateway.routes.batches import add_batches
from serve.gateway.routes.console import add_console
from serve.gateway.routes.files import add_files
from serve.gateway.routes.fine_tuning import add_fine_tuning
from serve.gateway.routes.models import add_models
from serve.gateway.routes.route import Route
from serve.gateway.routes.tokens import add_tokens
from serve.gateway.routing.dispatch import Dispatcher
from serve.gateway.routing.relay import AsIs, Relay, Shape
from serve.gateway.routing.router import Router
from serve.gateway.routing.shadow import Shadows
from serve.gateway.routing.work import Work, generation
from serve.protocol.chat import (
    AboutModel,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    SamplingFields,
    encode,
    error_body,
    parse,
)
from serve.protocol.responses import ResponsesRequest
from serve.replicas import ReadyReplica
from serve.tracing import open_tracer

if TYPE_CHECKING:
    from serve.gateway.limits.shared import Shared

SMALL_BODY_BYTES = 64 * 1024
"""A larger body is parsed where others need not wait for it."""
ALL = ["*"]
CORS_MAX_AGE_S = 600

Body = TypeVar("Body", bound=AboutModel)


class Gateway:
    """Everything the routes share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.serve
        self.metrics = Metrics()
        self.db = db = open_database(settings, START_PATIENCE_S)
        self.keeper = Doorkeeper(db, settings.serve)
        self.shared = _shared(settings, self.metrics)
        self.router = Router(db, self.metrics, self.shared, settings.serve.remotes)
        self.shadows = Shadows(self.metrics)
        self.dispatcher = Dispatcher(
            self.router, self.metrics, settings.serve.engine_wait_s, settings.serve.fallbacks, self.shadows
        )
        self.quotas = Quotas(self.shared)
        self.meter = Meter(db)
        self.guards: set[Guard] = set()
        self.checks = SchemaChecks()
        self.in_flight = 0
        self.draining = False

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Follow the database while the app serves."""
        await self.router.refresh()
        await self.meter.flush()
        metering = asyncio.create_task(self.meter.run())
        watching = [self.router.watch(), self.keeper.watch()]
        if self.shared:
            watching.append(self.shared.run(lambda: (*self.router.tell(), dict(self.quotas.in_flight))))
        watchers = [asyncio.create_task(each) for each in watching]
        try:
            yield
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
            await self.checks.stop()
            await self.shadows.stop()
            await self.router.close()
            self.meter.stop()
            await metering

    async def drain(self, timeout_s: float) -> None:
        """Refuse new work, let what runs finish, then end the rest with an error."""
        self.draining = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self.in_flight and loop.time() < deadline:
            await asyncio.sleep(0.05)
        for guard in list(self.guards):
            guard.stop("shutting_down")
        while self.guards and loop.time() < deadline + 1:
            await asyncio.sleep(0.05)

    async def accept(self, request: Request, model: type[Body]) -> tuple[Exchange, Body]:
        """Check a request in the order of cost: key, place, body, scope, tokens. Raises EverlearnError."""
        exchange = exchange_of(request)
        if self.draining:
            raise Draining("The server is shutting down.", retry_after_s=5)
        exchange.key = await self.keeper.admit(request)
        exchange.on_end.append(partial(self.meter.count, exchange))
        self.take_place(exchange)
        raw = await self.body(request)
        body = (
            await asyncio.to_thread(parse, model, raw) if len(raw) > SMALL_BODY_BYTES else parse(model, raw)
        )
        check_scope(exchange.key, body.model)
        exchange.model = self.router.known_model(body.model) or exchange.model
        if isinstance(body, SamplingFields) and (body.n or 1) > self.settings.max_n:
            raise InvalidInput(f"Invalid 'n': this server allows at most {self.settings.max_n}.", param="n")
        self.meter.admit(exchange.key)
        exchange.cost = expected(body, len(raw))
        if exchange.key:
            exchange.headers += await self.quotas.admit(exchange.key, exchange.cost.tokens)
            exchange.on_end.append(partial(self._charge, exchange, exchange.key))
        return exchange, body

    async def body(self, request: Request, limit_bytes: int | None = None) -> bytes:
        """The bytes of a request; `limit_bytes` None: the setting. Raises EverlearnError."""
        settings = self.settings
        return await read_body(request, limit_bytes or settings.max_body_bytes, settings.body_timeout_s)

    def relay(self, exchange: Exchange, work: Work, shape: Shape) -> Relay:
        """The response that does the work."""
        return Relay(
            work, exchange, self.dispatcher, self.settings, self.metrics, self.guards, shape, self.checks
        )

    def visible(self, key: ApiKey | None) -> list[dict[str, Any]]:
        """The models that a key may use, as OpenAI lists them."""
        models: dict[str, dict[str, Any]] = {}
        for row in self.router.rows():
            if key is None or key.models is None or row.model in {m.partition("@")[0] for m in key.models}:
                models[row.model] = _model_object(row)
        return list(models.values())

    def take_place(self, exchange: Exchange) -> None:
        """For a request that takes work, within the limits of its key. Raises RateLimited, Overloaded."""
        if key := exchange.key:
            self.quotas.enter(key, self.settings.key_requests_in_flight)
            exchange.on_end.append(partial(self.quotas.leave, key))
        if self.in_flight >= self.settings.queue_limit:
            raise Overloaded("The server is at capacity. Try again shortly.", retry_after_s=1)
        self.in_flight += 1
        self.metrics.in_flight.set(self.in_flight)
        exchange.on_end.append(self._leave_place)

    def _leave_place(self) -> None:
        self.in_flight -= 1
        self.metrics.in_flight.set(self.in_flight)

    def _charge(self, exchange: Exchange, key: ApiKey) -> None:
        used = exchange.tokens("prompt_tokens") + exchange.tokens("completion_tokens")
        self.quotas.charge(key, used - reservable(key, exchange.cost.tokens))


def _shared(settings: Settings, metrics: Metrics) -> "Shared | None":
    """Through the home's own Valkey only where several gateways need it: it may not run."""
    if not (settings.redis_url or settings.serve.gateways > 1):
        return None
    from serve.gateway.limits.shared import Shared  # most gateways start without it, and that much sooner

    return Shared(redis_url(settings), metrics)


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application. Raises ConfigError when it would be open to others without a key."""
    gateway = Gateway(settings)
    app = FastAPI(
        title="everlearn",
        version="1",
        description="Small language models behind OpenAI's API.",
        lifespan=gateway.running,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        root_path=settings.serve.root_path,
        redirect_slashes=False,
    )
    app.router.route_class = Route
    app.state.gateway = gateway
    if origins := settings.serve.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=ALL, allow_headers=ALL, expose_headers=ALL,
            max_age=CORS_MAX_AGE_S,
        )  # fmt: skip
    app.add_middleware(Door, metrics=gateway.metrics, tracer=open_tracer("gateway"))
    app.add_exception_handler(EverlearnError, _everlearn_error)
    app.add_exception_handler(HTTPException, _http_error)
    _add_inference(app, gateway)
    add_messages(app, gateway)
    add_tokens(app, gateway)
    add_models(app, gateway, settings)
    add_files(app, gateway, settings)
    add_batches(app, gateway, settings)
    add_fine_tuning(app, gateway, settings)
    _add_operations(app, gateway)
    add_console(app, gateway, settings)
    add_pages(app)
    app.openapi = partial(document, app)  # type: ignore[method-assign]
    return app


def _add_inference(app: FastAPI, gateway: Gateway) -> None:
    @app.post("/v1/chat/completions", responses=POST_ERRORS, response_class=Response)
    async def chat_completions(request: Request) -> Response:
        exchange, chat = await gateway.accept(request, ChatRequest)
        return gateway.relay(exchange, generation("/v1/chat/completions", chat), AsIs())

    @app.post("/v1/completions", responses=POST_ERRORS, response_class=Response)
    async def completions(request: Request) -> Response:
        exchange, completion = await gateway.accept(request, CompletionRequest)
        return gateway.relay(exchange, generation("/v1/completions", completion), AsIs())

    @app.post("/v1/responses", responses=POST_ERRORS, response_class=Response)
    async def responses(request: Request) -> Response:
        exchange, wanted = await gateway.accept(request, ResponsesRequest)
        work = generation("/v1/chat/completions", to_chat(wanted), keep_usage=True)
        return gateway.relay(exchange, work, ResponseShape(wanted))

    @app.post("/v1/embeddings", responses=POST_ERRORS, response_class=Response)
    async def embeddings(request: Request) -> Response:
        exchange, embedding = await gateway.accept(request, EmbeddingRequest)
        work = Work("/v1/embeddings", encode(embedding), embedding.model, "embed", stream=False)
        return gateway.relay(exchange, work, AsIs())


def _model_object(row: ReadyReplica) -> dict[str, Any]:
    return {
        "id": row.model,
        "object": "model",
        "created": int(row.started_at),
        "owned_by": "everlearn",
        "version": row.version,
        "task": row.task,
        "context": row.context,
    }


def _add_operations(app: FastAPI, gateway: Gateway) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/ready", responses=error_responses(503))
    async def ready() -> Response:
        """Requests can be taken: not shutting down, and at least one engine is there. It tells which models failed."""
        if gateway.draining:
            return JSONResponse(
                error_body("The server is shutting down.", "server_error", None, "draining"), 503
            )
        if not gateway.router.rows():
            return JSONResponse(error_body("No engine is ready.", "server_error", None, "no_engine"), 503)
        return JSONResponse({"status": "ready", "failed": gateway.router.failed()})

    @app.get("/metrics", responses=error_responses(401, 403, 503), response_class=Response)
    async def metrics(request: Request) -> Response:
        """For Prometheus; needs a key unless the server is bound to loopback."""
        await gateway.keeper.admit_reader(request)
        gateway.router.count()
        return Response(gateway.metrics.render(), media_type=CONTENT_TYPE_LATEST)


async def _everlearn_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EverlearnError)
    exchange = exchange_of(request)
    exchange.error = error.code
    return answer(error, exchange.describe)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    if status == 404:
        message = f"Unknown request URL: {request.method} {request.url.path[:200]}."
        return JSONResponse(error_body(message, "invalid_request_error", None, "unknown_url"), 404)
    message = error.detail if status != 405 else f"{request.method} is not allowed here."
    body = error_body(message, "invalid_request_error", None, "method_not_allowed" if status == 405 else None)
    return JSONResponse(body, status, headers=error.headers)

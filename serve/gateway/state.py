"""The gateway that every route uses: it admits a request (key, limits, body) and relays the engine's answer.

`Gateway.accept` checks a request, and `Gateway.relay` makes the response that passes on an engine's answer.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from fastapi import FastAPI, Request

from everlearn.errors import InvalidInput
from everlearn.redis_address import redis_url
from everlearn.registry.database import START_PATIENCE_S, open_database
from everlearn.registry.tables import ApiKey
from everlearn.settings import Settings
from serve.gateway.formats.schema_check import SchemaCheckPool
from serve.gateway.formats.translator import Translator
from serve.gateway.http.answer_watcher import AnswerWatcher
from serve.gateway.http.body import read_body
from serve.gateway.http.exchange import Exchange, exchange_of
from serve.gateway.http.failures import Draining, Overloaded
from serve.gateway.http.metrics import Metrics
from serve.gateway.limits.auth import Authenticator, check_scope
from serve.gateway.limits.cost import expected
from serve.gateway.limits.meter import Meter
from serve.gateway.limits.rate_limit import RateLimiter, reservable
from serve.gateway.routing.dispatch import Dispatcher
from serve.gateway.routing.relay import Relay
from serve.gateway.routing.router import Router
from serve.gateway.routing.shadow import Shadows
from serve.gateway.routing.work import Work
from serve.protocol.body import ModelRequest
from serve.protocol.parsing import parse
from serve.protocol.sampling import SamplingFields

if TYPE_CHECKING:
    from serve.gateway.limits.shared import Shared

SMALL_BODY_BYTES = 64 * 1024
"""A larger body is parsed in a thread, so that other requests need not wait for it."""

Body = TypeVar("Body", bound=ModelRequest)


class Gateway:
    """Everything the routes share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.db = db = open_database(settings, START_PATIENCE_S)
        self.authenticator = Authenticator(db, settings.serve)
        self.shared = _shared(settings, self.metrics)
        self.router = Router(db, self.metrics, self.shared, settings.serve.remotes)
        self.shadows = Shadows(self.metrics)
        self.dispatcher = Dispatcher(
            self.router, self.metrics, settings.serve.engine_wait_s, settings.serve.fallbacks, self.shadows
        )
        self.quotas = RateLimiter(self.shared)
        self.meter = Meter(db)
        self.watchers: set[AnswerWatcher] = set()
        self.checks = SchemaCheckPool()
        self.in_flight = 0
        self.draining = False

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Follow the database while the app serves."""
        await self.router.refresh()
        await self.meter.flush()
        metering = asyncio.create_task(self.meter.run())
        watching = [self.router.watch(), self.authenticator.watch()]
        if self.shared:
            watching.append(self.shared.run(lambda: (*self.router.tell(), dict(self.quotas.in_flight))))
        tasks = [asyncio.create_task(each) for each in watching]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
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
        for watcher in list(self.watchers):
            watcher.stop("shutting_down")
        while self.watchers and loop.time() < deadline + 1:
            await asyncio.sleep(0.05)

    async def accept(
        self, request: Request, model: type[Body], *, named: str | None = None
    ) -> tuple[Exchange, Body]:
        """Check a request in the order of cost: key, place, body, scope, tokens. Raises EverlearnError.

        `named`: the model, where it is in the path instead of the body.
        """
        exchange = exchange_of(request)
        if self.draining:
            raise Draining("The server is shutting down.", retry_after_s=5)
        exchange.key = await self.authenticator.admit(request)
        exchange.on_end.append(partial(self.meter.count, exchange))
        self.take_place(exchange)
        raw = await self.body(request)
        body = (
            await asyncio.to_thread(parse, model, raw, named)
            if len(raw) > SMALL_BODY_BYTES
            else parse(model, raw, named)
        )
        check_scope(exchange.key, body.model)
        exchange.model = self.router.known_model(body.model) or exchange.model
        if isinstance(body, SamplingFields) and (body.n or 1) > self.settings.serve.max_n:
            raise InvalidInput(
                f"Invalid 'n': this server allows at most {self.settings.serve.max_n}.", param="n"
            )
        self.meter.admit(exchange.key)
        exchange.cost = expected(body, len(raw))
        if exchange.key:
            exchange.headers += await self.quotas.admit(exchange.key, exchange.cost.tokens)
            exchange.on_end.append(partial(self._charge, exchange, exchange.key))
        return exchange, body

    async def body(self, request: Request, limit_bytes: int | None = None) -> bytes:
        """The bytes of a request; `limit_bytes` None: the setting. Raises EverlearnError."""
        settings = self.settings.serve
        return await read_body(request, limit_bytes or settings.max_body_bytes, settings.body_timeout_s)

    def relay(self, exchange: Exchange, work: Work, translator: Translator) -> Relay:
        """The response that does the work."""
        return Relay(
            work, exchange, self.dispatcher, self.settings.serve, self.metrics, self.watchers, translator,
            self.checks,
        )  # fmt: skip

    def take_place(self, exchange: Exchange) -> None:
        """For a request that takes work, within the limits of its key. Raises RateLimited, Overloaded."""
        if key := exchange.key:
            self.quotas.enter(key, self.settings.serve.key_requests_in_flight)
            exchange.on_end.append(partial(self.quotas.leave, key))
        if self.in_flight >= self.settings.serve.queue_limit:
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

"""One request at the engines: choose a replica and open its reply; try another, wait, or fall back where that fails.

Until a byte of the answer came, a second replica may be tried once; while no engine is there that could have taken
the request, it waits for one; and where another model shall answer instead, it does.
"""

import asyncio
import time
from collections.abc import Sequence
from itertools import pairwise

import structlog

from everlearn.errors import EverlearnError
from everlearn.registry.keys import covers
from everlearn.settings import Fallback
from serve.engines import LEFT_OPEN
from serve.gateway.http.exchange import Exchange
from serve.gateway.http.failures import BackendFailed, ModelNotFound, NoBackend, Overloaded
from serve.gateway.http.metrics import Metrics
from serve.gateway.routing.replica import Replica
from serve.gateway.routing.reply import AttemptFailed, Reply
from serve.gateway.routing.router import Router
from serve.gateway.routing.shadow import Shadows
from serve.gateway.routing.work import Work

LOOK_S = 0.1

log = structlog.get_logger()


class Dispatcher:
    """Opens replies. A request waits up to `wait_s` seconds for an engine that is starting or restarting."""

    def __init__(
        self, router: Router, metrics: Metrics, wait_s: float = 0.0, fallbacks: Sequence[Fallback] = (),
        shadows: Shadows | None = None,
    ) -> None:  # fmt: skip
        self._router = router
        self._shadows = shadows
        self._metrics = metrics
        self._wait_s = wait_s
        self._fallbacks = {fallback.model: fallback.to for fallback in fallbacks}

    async def open(self, work: Work, exchange: Exchange) -> Reply:
        """A reply that has begun; the caller closes it. Raises EverlearnError."""
        reply = await self._first_able(work, exchange)
        if self._shadows and (shadow := self._router.shadow_of(work)):
            self._shadows.copy(work, shadow, exchange.id)
        return reply

    async def _first_able(self, work: Work, exchange: Exchange) -> Reply:
        """A reply of the model itself, or of the first fallback that can answer."""
        self._router.budget.earn()
        others = [
            model
            for model in self._fallbacks.get(work.model, ())
            if exchange.key is None or covers(exchange.key, model)
        ]
        for model, other in pairwise([work.model, *others]):
            try:
                return await self._open(work.to(model), exchange, time.monotonic())
            except (NoBackend, Overloaded, BackendFailed, ModelNotFound) as failure:
                log.warning("fallback", model=model, to=other, error=failure.code, request_id=exchange.id)
                self._metrics.fallbacks.labels(model, other).inc()
        last = others[-1] if others else work.model
        return await self._open(work.to(last), exchange, time.monotonic() + self._wait_s)

    async def _open(self, work: Work, exchange: Exchange, deadline: float) -> Reply:
        tried: Replica | None = None
        failure: EverlearnError | None = None
        while True:
            replica = await self._choose(work, tried, failure, deadline)
            reply = Reply(replica, work)
            exchange.replica = replica
            try:
                await reply.begin(exchange.engine_headers())
            except AttemptFailed as attempt:
                reply.close()
                once_more = tried is None and self._router.budget.spend()
                if not once_more and not _may_wait(attempt.error, deadline):
                    raise attempt.error from None
                if attempt.broke:
                    self._metrics.count_version(replica, "failed")
                tried, failure = replica, attempt.error
                continue
            except BaseException:
                reply.close()
                raise
            if tried is not None:
                self._metrics.retries.labels(exchange.model).inc()
                exchange.headers.append((b"x-everlearn-retries", b"1"))
            exchange.headers.append((b"x-everlearn-version", replica.name.encode()))
            if left_open := reply.left_open():
                exchange.headers.append((LEFT_OPEN.encode(), left_open))
            return reply

    async def _choose(
        self, work: Work, tried: Replica | None, failure: EverlearnError | None, deadline: float
    ) -> Replica:
        while True:
            try:
                return self._router.choose(work, tried)
            except NoBackend as none_left:
                error = failure or none_left
                if not _may_wait(error, deadline):
                    raise error from None
            await asyncio.sleep(LOOK_S)
            tried = None


def _may_wait(error: EverlearnError, deadline: float) -> bool:
    """Whether there is time for another attempt, and no engine has seen the request, so that it is safe."""
    return type(error) is NoBackend and time.monotonic() + LOOK_S < deadline

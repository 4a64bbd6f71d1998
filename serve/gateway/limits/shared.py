"""State that the gateways of one installation share through Redis or Valkey.

Four times per second each publishes how many requests it has at each engine and which engines it has excluded; and
the limits of keys are counted there. None of it has to survive a restart. Without Redis each gateway uses what it
knows itself, says so in its log and in `everlearn_limits_shared`, and reconnects by itself.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import uuid4

import structlog
from pydantic import BaseModel, ValidationError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from serve.gateway.http.metrics import Metrics

CHANNEL = "everlearn:gateways"
TELL_S = 0.25
STALE_S = 1.5
TIMEOUT_S = 0.25

log = structlog.get_logger()

Answer = TypeVar("Answer")


class Report(BaseModel):
    """What one gateway publishes: its requests at each engine, the engines it excludes and for how many seconds, and its
    requests of each key."""

    id: str
    loads: dict[str, int]
    excluded: dict[str, float]
    keys: dict[str, int] = {}


@dataclass
class Peer:
    """Another gateway's last report."""

    report: Report
    heard_at: float = field(default_factory=time.monotonic)

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.heard_at


class Shared:
    """The connection, and the reports of the other gateways."""

    def __init__(self, url: str, metrics: Metrics) -> None:
        # One retry, because the first use of a connection that Redis has dropped meanwhile fails.
        self.redis = Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 1)
        )
        self.here = False
        self._id = uuid4().hex
        self._peers: dict[str, Peer] = {}
        self._metrics = metrics
        self._said: bool | None = None

    async def run(self, tell: Callable[[], tuple[dict[str, int], dict[str, float], dict[str, int]]]) -> None:
        """Publish and subscribe until cancelled. `tell` returns the loads, the exclusions and the keys of this gateway."""
        listening = asyncio.create_task(self._listen())
        try:
            while True:
                loads, excluded, keys = tell()
                report = Report(id=self._id, loads=loads, excluded=excluded, keys=keys).model_dump_json()
                if await self._answered(self.redis.publish(CHANNEL, report)) is not None:
                    self._set_here(True)
                await asyncio.sleep(TELL_S)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await self.redis.aclose()

    async def ask(self, command: Callable[[], Awaitable[Answer]]) -> Answer | None:
        """The answer of Redis, which is never None; None, at once, while Redis is known to be unavailable."""
        return await self._answered(command()) if self.here else None

    def load(self, replica: str) -> int:
        """Requests of other gateways at an engine."""
        return sum(peer.report.loads.get(replica, 0) for peer in self._fresh())

    def in_flight(self, key_id: str) -> int:
        """Requests of a key at other gateways."""
        return sum(peer.report.keys.get(key_id, 0) for peer in self._fresh())

    def excludes(self, replica: str) -> bool:
        """Whether another gateway found an engine broken just now."""
        return any(peer.report.excluded.get(replica, 0.0) > peer.age_s for peer in self._fresh())

    async def _answered(self, answer: Awaitable[Answer]) -> Answer | None:
        try:
            return await answer
        except (RedisError, OSError, TimeoutError) as error:
            self._set_here(False, type(error).__name__)
            return None

    def _set_here(self, here: bool, error: str | None = None) -> None:
        self.here = here
        self._metrics.shared.set(here)
        if here != self._said:
            self._said = here
            if here:
                log.info("limits_are_shared")
            else:
                log.warning("limits_are_local", note="each gateway counts for itself", error=error)

    async def _listen(self) -> None:
        while True:
            with suppress(RedisError, OSError, TimeoutError):
                async with self.redis.pubsub() as heard:
                    await heard.subscribe(CHANNEL)
                    # Our own reports arrive as well: silence means that the connection is dead.
                    while message := await heard.get_message(timeout=STALE_S):
                        self._hear(message)
            await asyncio.sleep(TELL_S)

    def _hear(self, message: dict[str, Any]) -> None:
        if message["type"] != "message":
            return
        try:
            report = Report.model_validate_json(message["data"])
        except ValidationError:
            return
        if report.id != self._id:
            self._peers[report.id] = Peer(report)

    def _fresh(self) -> list[Peer]:
        for id in [id for id, peer in self._peers.items() if peer.age_s > STALE_S]:
            del self._peers[id]
        return list(self._peers.values())

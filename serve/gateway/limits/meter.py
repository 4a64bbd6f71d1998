"""Counts the usage of keys in memory, adds it to the database every few seconds, and enforces monthly budgets.

A process that is killed loses at most FLUSH_S seconds of counts. While the database is unavailable, counts wait in
memory and budgets are checked against the last known sums.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from everlearn.errors import EverlearnError
from everlearn.registry.database import read, write
from everlearn.registry.tables import ApiKey
from everlearn.registry.usage import Count, Spot, add_usage, budgeted_tokens, day_of, month_end
from serve.gateway.http.exchange import Exchange
from serve.gateway.http.failures import BudgetSpent

FLUSH_S = 2.0

log = structlog.get_logger()


class Meter:
    """One per process that sends requests to engines; all of them add to the same rows."""

    def __init__(self, db: Engine, clock: Callable[[], float] = time.time) -> None:
        self._db = db
        self._clock = clock
        self._fresh: dict[Spot, Count] = {}
        self._leaving: dict[Spot, Count] = {}
        self._month = ""
        self._written: dict[str, int] = {}
        self._reachable = True
        self._stopping = asyncio.Event()

    def count(self, exchange: Exchange) -> None:
        """Count a finished request, for the model that answered it, which may differ from the one requested."""
        model = exchange.replica.row.model if exchange.replica else exchange.model
        spot = Spot(day_of(self._clock()), exchange.key.id if exchange.key else "", model)
        failed = bool(exchange.error) or exchange.status >= 400
        tokens = exchange.tokens("prompt_tokens"), exchange.tokens("completion_tokens")
        self._fresh.setdefault(spot, Count()).add(Count(1, int(failed), *tokens))

    def admit(self, key: ApiKey | None) -> None:
        """Raises BudgetSpent if the key's tokens of this month, as far as they are known here, reach its budget."""
        if key is None or key.tokens_per_month is None:
            return
        now = self._clock()
        if self._tokens(key.id, day_of(now)[:7]) >= key.tokens_per_month:
            ends = month_end(datetime.fromtimestamp(now, UTC))
            raise BudgetSpent(
                f"This key's budget of {key.tokens_per_month} tokens per month is spent. "
                f"The month ends on {ends:%Y-%m-%d} at 00:00 UTC.",
                retry_after_s=ends.timestamp() - now,
            )

    async def run(self) -> None:
        """Add to the database every FLUSH_S seconds until stopped, and once more at the end."""
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), FLUSH_S)
            await self.flush()

    def stop(self) -> None:
        """Let `run` end: nothing more will be counted."""
        self._stopping.set()

    async def flush(self) -> None:
        """Add the counts, and read the sums of all processes. What cannot be added is kept for the next time."""
        for spot, count in self._fresh.items():
            self._leaving.setdefault(spot, Count()).add(count)
        self._fresh = {}
        month = day_of(self._clock())[:7]
        try:
            self._written = await asyncio.to_thread(self._add, month)
        except (SQLAlchemyError, EverlearnError) as error:
            if self._reachable:
                log.error("usage_unwritten", error=type(error).__name__)
            self._reachable = False
            return
        self._reachable = True
        self._leaving = {}
        self._month = month

    def _add(self, month: str) -> dict[str, int]:
        with write(self._db) if self._leaving else read(self._db) as connection:
            add_usage(connection, self._leaving)
            return budgeted_tokens(connection, month)

    def _tokens(self, key_id: str, month: str) -> int:
        written = self._written.get(key_id, 0) if month == self._month else 0
        return written + sum(
            count.tokens
            for counts in (self._leaving, self._fresh)
            for spot, count in counts.items()
            if spot.key_id == key_id and spot.day.startswith(month)
        )

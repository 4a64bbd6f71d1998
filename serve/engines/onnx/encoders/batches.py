"""What concurrent requests ask of one graph, computed in batches that they share."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from everlearn.errors import RateLimited

BATCH_TOKENS = 4096
"""Padded size of one batch: large enough to fill the cores, small enough to stay in the caches."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class Pending(Generic[Item, Result]):
    """One item on its way."""

    item: Item
    result: asyncio.Future[Result]


class SharedBatches(Generic[Item, Result]):
    """Lives on one event loop; the graph runs in a thread. ``most``: the padded size of a batch."""

    def __init__(self, most: int, queue_limit: int) -> None:
        self.most, self.queue_limit = most, queue_limit
        self.pending: deque[Pending[Item, Result]] = deque()
        self.active = 0
        self.beat = 0.0
        self.worker: asyncio.Task[None] | None = None

    @abstractmethod
    def _size(self, item: Item) -> int:
        """Of one item; in a batch all are as large as the largest."""

    @abstractmethod
    def _run(self, batch: list[Item]) -> list[Result]:
        """Computes a batch, in a thread."""

    @property
    def stuck_s(self) -> float:
        """How long the present batch has taken."""
        return time.monotonic() - self.beat if self.active else 0.0

    async def compute(self, items: Sequence[Item]) -> list[Result]:
        """Of each item. Those of concurrent requests share batches."""
        if len(self.pending) + len(items) > self.queue_limit and self.pending:
            raise RateLimited("the encoder's queue is full", retry_after_s=1)
        loop = asyncio.get_running_loop()
        mine = [Pending[Item, Result](item, loop.create_future()) for item in items]
        self.pending.extend(sorted(mine, key=lambda one: self._size(one.item)))  # like sizes pad little
        if self.worker is None or self.worker.done():
            self.worker = loop.create_task(self._work())
        try:
            return await asyncio.gather(*(one.result for one in mine))
        finally:
            for one in mine:
                one.result.cancel()

    async def _work(self) -> None:
        while self.pending:
            batch = self._next_batch()
            if not batch:
                continue
            self.active, self.beat = len(batch), time.monotonic()
            try:
                computed = await asyncio.to_thread(self._run, [one.item for one in batch])
            except Exception as error:  # noqa: BLE001 (it becomes the answer of each request in the batch)
                for one in batch:
                    if not one.result.done():
                        one.result.set_exception(error)
            else:
                for one, result in zip(batch, computed, strict=True):
                    if not one.result.done():
                        one.result.set_result(result)
            finally:
                self.active = 0

    def _next_batch(self) -> list[Pending[Item, Result]]:
        """The next items, in order, as many as fit one padded batch."""
        batch: list[Pending[Item, Result]] = []
        largest = 0
        while self.pending:
            largest = max(largest, self._size(self.pending[0].item))
            if batch and (len(batch) + 1) * largest > self.most:
                break
            one = self.pending.popleft()
            if not one.result.done():
                batch.append(one)
        return batch

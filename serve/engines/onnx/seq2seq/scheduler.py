"""Answers of encoder-decoders in groups: those that wait when a step ends begin together, and groups step by turns.

Within a group every answer has as many tokens, so that any family's positions are right; an answer that ends leaves its
group at once. Who comes while others run begins after their step.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import structlog

from everlearn.errors import RateLimited, Unavailable
from serve.engines.onnx.decoding.generation import Generation, Piece, advance
from serve.engines.onnx.decoding.softmax import Softmax
from serve.engines.onnx.memory import exit_code
from serve.engines.onnx.seq2seq.model import EncoderDecoder, State

log = structlog.get_logger()

GROUP_TOKENS = 4096
"""Padded size of the sources that are read at once."""

Delivery = list[tuple[Generation, Piece]]


@dataclass
class Group:
    """Answers that began together, in the rows of ``state``."""

    generations: list[Generation]
    state: State


class GroupScheduler(threading.Thread):
    """Runs the model in its own thread; ``deliver`` gets each step's pieces, in that thread.

    ``rows``: answers that run at once.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        deliver: Callable[[Delivery], None],
        *,
        rows: int,
        queue_limit: int,
    ) -> None:
        super().__init__(name="scheduler", daemon=True)
        self.model = model
        self.deliver = deliver
        self.rows = rows
        self.softmax = Softmax(model.vocab_size)
        self.queue_limit = queue_limit
        self.waiting: deque[Generation] = deque()
        self.groups: list[Group] = []
        self.leaving = False
        self.failed = False
        self.changed = threading.Condition()
        self.beat = 0.0

    @property
    def active(self) -> int:
        """Answers that hold a row."""
        return sum(len(group.generations) for group in self.groups)

    @property
    def stuck_s(self) -> float:
        """How long the thread has spent in one round, while there is work for it."""
        return time.monotonic() - self.beat if self.waiting or self.groups else 0.0

    def submit(self, generations: list[Generation]) -> None:
        """Queue answers; raises RateLimited when the queue is full, Unavailable after a failure."""
        with self.changed:
            if self.failed or self.leaving:
                raise Unavailable("the engine is stopping")
            if len(self.waiting) + len(generations) > self.queue_limit:
                raise RateLimited(
                    f"the engine's queue of {self.queue_limit} requests is full", retry_after_s=1
                )
            if not (self.waiting or self.groups):
                self.beat = time.monotonic()
            self.waiting.extend(generations)
            self.changed.notify()

    def cancel(self, generation: Generation) -> None:
        """Drop an answer nobody waits for; its row is free after the current step."""
        with self.changed:
            generation.cancelled = True
            self.changed.notify()

    def leave(self, leaving: bool) -> None:
        """While another engine has taken over, whoever waits shall ask there, and nobody new comes here."""
        with self.changed:
            self.leaving = leaving
            self.changed.notify()

    def run(self) -> None:
        try:
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: self.waiting or self.groups)
                self.beat = time.monotonic()
                delivery = self._sent_away()
                self._begin(delivery)
                for group in self.groups:
                    self._step(group, delivery)
                self.groups = [group for group in self.groups if group.generations]
                if delivery:
                    self.deliver(delivery)
        except BaseException as error:  # noqa: BLE001 (the process ends: the supervisor starts a clean one)
            try:
                log.exception("engine failed", error=repr(error))
                self.failed = True
                doomed = [*self.waiting, *(one for group in self.groups for one in group.generations)]
                failure = Unavailable("the engine failed while generating; it restarts")
                self.deliver([(one, Piece(error=failure)) for one in doomed])
            finally:
                os._exit(exit_code(error))

    def _sent_away(self) -> Delivery:
        """After a hand-over: an error for each answer that waits."""
        with self.changed:
            away = list(self.waiting) if self.leaving else []
            if away:
                self.waiting.clear()
        error = Unavailable("another engine has taken over")
        return [(generation, Piece(error=error)) for generation in away]

    def _begin(self, delivery: Delivery) -> None:
        """A group of those that wait, in their order, as many as there are rows for and as fit one padded batch."""
        chosen: list[Generation] = []
        longest = 0
        with self.changed:
            while self.waiting and self.active + len(chosen) < self.rows:
                longest = max(longest, self.waiting[0].prompt_tokens)
                if chosen and (len(chosen) + 1) * longest > GROUP_TOKENS:
                    break
                generation = self.waiting.popleft()
                if not generation.cancelled:
                    generation.admitted_ns = time.time_ns()
                    chosen.append(generation)
        if not chosen:
            return
        state, logits = self.model.read([one.tokens[: one.prompt_tokens] for one in chosen])
        group = Group(chosen, state)
        self.groups.append(group)
        self._advance(group, logits, delivery)

    def _step(self, group: Group, delivery: Delivery) -> None:
        """One token more of each answer; one that was just begun has its first already."""
        self._leave(group, [row for row, one in enumerate(group.generations) if not one.cancelled])
        if group.generations:
            tokens = np.array([one.last_token for one in group.generations], np.int64)
            self._advance(group, self.model.step(group.state, tokens), delivery)

    def _advance(self, group: Group, logits: np.ndarray, delivery: Delivery) -> None:
        staying: list[int] = []
        pieces = advance(group.generations, logits, self.softmax)
        for row, (generation, piece) in enumerate(zip(group.generations, pieces, strict=True)):
            if not piece.last:
                staying.append(row)
            if not piece.empty:
                delivery.append((generation, piece))
        self._leave(group, staying)

    def _leave(self, group: Group, staying: list[int]) -> None:
        if len(staying) < len(group.generations):
            group.generations = [group.generations[row] for row in staying]
            if staying:
                group.state.keep(staying)

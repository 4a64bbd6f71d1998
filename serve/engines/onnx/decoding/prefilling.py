"""The prompts being computed: in which rows, whose turn it is, and how much of one fits between two decode steps.

Of a long prompt little fits where steps are short, and small chunks are slow: each reads all weights and the whole past.
A thread of lower priority computes larger ones beside the steps instead. On two cores, beside one stream of SmolLM2,
6,000 tokens make its steps 1.5 times as long; chunks of 8 between its steps made its gaps 3 to 8 times as long.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
from numpy.typing import NDArray

from serve.engines.onnx.decoding.decoder import Decoder
from serve.engines.onnx.decoding.generation import Generation
from serve.engines.onnx.priority import let_steps_go_first

IDLE_CHUNK_TOKENS = 256
"""Prefill chunk while nothing decodes: only cancelling waits for it."""

SMALLEST_CHUNK_TOKENS = 4
"""Fewer cost nearly as much."""

STEPS = 2.0
"""A chunk between two decode steps may take this many times the last step's time, so a stream's gap at most triples."""

EFFICIENT_CHUNK_TOKENS = 16
"""Where fewer fit between two steps, a long prompt is computed beside them."""

BESIDE_SHARE = 2
"""But only with at most this many prompts per running answer: beside the steps, all of them take longer."""

BESIDE_SLOWS = 1.5
"""A step takes this many times as long while a chunk is computed beside it."""

BESIDE_CHUNK_TOKENS = 64
"""The next prompt waits for such a chunk: about a second, on two busy cores and behind thousands of tokens."""

SCORED_CHUNK_TOKENS = 64
"""Where logits of every token are wanted: of a vocabulary of 150,000 these are 38 MB."""

PATIENCE_S = 30.0
"""A prompt that is being read for longer gets larger chunks, ever more: it shall come to its first token, too."""

LONG_TOKENS = 1024
LONG_AT_ONCE = 2
"""Of prompts with so many tokens left so many are computed by turns; more would only take rows and memory."""

OLDEST_EVERY = 4
"""The shortest rest comes first, but every fourth chunk is the oldest prompt's."""


class Prefilling:
    """Prompts and their rows: the highest ones, since answers run in the lowest."""

    def __init__(self, rows: int, chunk: int) -> None:
        self.rows: dict[int, Generation] = {}
        self._all_rows = rows
        self._chunk = chunk
        self._token_s = 0.0
        self._step_s = 0.0
        self._turn = 0
        self.away: Generation | None = None
        """The one whose chunk is computed beside the steps: its row is nobody else's meanwhile."""

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Generation]:
        """The oldest first."""
        return iter(list(self.rows.values()))

    @property
    def here(self) -> list[Generation]:
        """Those that are not away, the oldest first: they may leave their rows."""
        return [one for one in self if one is not self.away]

    def at(self, row: int) -> Generation | None:
        return self.rows.get(row)

    def row_of(self, generation: Generation) -> int:
        return next(row for row, one in self.rows.items() if one is generation)

    def takes(self, generation: Generation) -> bool:
        """Whether it may join: so many long prompts at once, and any number of short ones."""
        return not _is_long(generation) or sum(map(_is_long, self)) < LONG_AT_ONCE

    def add(self, generation: Generation) -> int:
        """Join in the highest free row, which is returned."""
        row = self._free_row()
        self.rows[row] = generation
        return row

    def remove(self, generation: Generation) -> None:
        del self.rows[self.row_of(generation)]

    def move(self, generation: Generation, row: int | None = None) -> int:
        """To another row (the highest free one), which is returned; the order of ages stays."""
        row = self._free_row() if row is None else row
        self.rows = {row if one is generation else at: one for at, one in self.rows.items()}
        return row

    def next(self, but: Sequence[Generation] = ()) -> Generation | None:
        """Whose turn it is, of those that are not away and not among `but`."""
        prompts = [one for one in self.here if one not in but]
        if not prompts:
            return None
        self._turn += 1
        if self._turn % OLDEST_EVERY == 0:
            return prompts[0]
        return min(prompts, key=lambda one: (one.flexible, one.prefill_tokens - one.cached))

    @property
    def promised_tokens(self) -> int:
        """Keys and values that these prompts will need besides what they have."""
        return sum(one.length + 1 - one.cached for one in self)

    def budget(self, running: int) -> int:
        """Tokens that may be computed before the next decode step of `running` answers."""
        if not running:
            return IDLE_CHUNK_TOKENS
        if not (self._token_s and self._step_s):
            return self._chunk
        waited_s = max(((time.time_ns() - one.admitted_ns) / 1e9 for one in self), default=0.0)
        fitting = int(self._fitting * max(1.0, waited_s / PATIENCE_S))
        return min(self._chunk, max(SMALLEST_CHUNK_TOKENS, fitting))

    def belongs_beside(self, generation: Generation, running: int, waiting: int) -> bool:
        """Whether it is to be computed beside the steps of `running` answers, while `waiting` prompts have no row.

        Not in the second row, which a step of one answer may use, and not where every token's logits are wanted.
        """
        if generation.prefill_tokens <= LONG_TOKENS or generation.scored or self.row_of(generation) < 2:
            return False
        measured = self._token_s and self._step_s
        few = len(self) + waiting <= BESIDE_SHARE * running
        return bool(measured) and few and self._fitting < EFFICIENT_CHUNK_TOKENS

    @property
    def _fitting(self) -> float:
        """Tokens that take `STEPS` decode steps' time."""
        return STEPS * self._step_s / self._token_s

    def took(self, tokens: int, seconds: float) -> None:
        """Learn from one chunk between steps how long a token takes."""
        if self.away is None:
            self._token_s = _smoothed(self._token_s, seconds / tokens)

    def stepped(self, seconds: float) -> None:
        """Learn from one decode step how long they take where none is computed beside."""
        self._step_s = _smoothed(self._step_s, seconds / BESIDE_SLOWS if self.away else seconds)

    def _free_row(self) -> int:
        return max(row for row in range(self._all_rows) if row not in self.rows)


class Beside:
    """A thread that computes one chunk of a prompt at a time, while answers go on."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._thread = ThreadPoolExecutor(1, "prefill", initializer=let_steps_go_first)
        self._result: Future[NDArray[np.float32]] | None = None
        self.began_s = 0.0
        self.chunk = 0

    def __bool__(self) -> bool:
        """There is a chunk whose result nobody has taken."""
        return self._result is not None

    def begin(self, generation: Generation, row: int) -> None:
        """The next chunk of its prompt."""
        self.began_s = time.monotonic()
        start, self.chunk = generation.cached, chunk_of(generation, BESIDE_CHUNK_TOKENS)
        tokens = generation.tokens[start : start + self.chunk]
        self._result = self._thread.submit(self._decoder.prefill, row, tokens, start)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it is computed, within `timeout_s`; from then on its row may be moved."""
        return self._result is None or bool(wait([self._result], timeout_s).done)

    def take(self) -> NDArray[np.float32]:
        """The last token's logits (vocab,), once it is computed."""
        assert self._result
        logits = self._result.result()
        self._result = None
        return logits


def _smoothed(before: float, now: float) -> float:
    return 0.7 * before + 0.3 * now if before else now


def _is_long(generation: Generation) -> bool:
    return generation.prefill_tokens - generation.cached > LONG_TOKENS


def chunk_of(generation: Generation, budget: int) -> int:
    """Of its prompt, about `budget` tokens; one is never left for the last: alone it would run in another kernel."""
    left = generation.prefill_tokens - generation.cached
    if generation.scored:
        budget = min(budget, SCORED_CHUNK_TOKENS)
    return left if left <= budget + 1 else budget

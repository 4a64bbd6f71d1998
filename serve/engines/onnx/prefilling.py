"""The prompts being computed: in which rows, whose turn it is, and how much of one fits between two decode steps."""

from __future__ import annotations

import time
from collections.abc import Iterator

from serve.engines.onnx.generation import Generation

IDLE_CHUNK_TOKENS = 256
"""Prefill chunk while nothing decodes: only cancelling waits for it."""

SMALLEST_CHUNK_TOKENS = 8
"""Fewer cost nearly as much."""

STEPS = 2.0
"""So many times the last decode step's time may a chunk take: a stream's gap while prompts are read is three times its
quiet one. A full batch has long steps, and large chunks; one fast stream slows the reading of prompts by a third."""

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

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Generation]:
        """The oldest first."""
        return iter(list(self.rows.values()))

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

    def next(self) -> Generation:
        """Whose turn it is."""
        self._turn += 1
        prompts = list(self)
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
        waited_s = max((time.time_ns() - one.admitted_ns) / 1e9 for one in self) if self.rows else 0.0
        steps = STEPS * max(1.0, waited_s / PATIENCE_S)
        fitting = int(steps * self._step_s / self._token_s)
        return min(self._chunk, max(SMALLEST_CHUNK_TOKENS, fitting))

    def took(self, tokens: int, seconds: float) -> None:
        """Learn from one chunk how long a token takes."""
        self._token_s = _smoothed(self._token_s, seconds / tokens)

    def stepped(self, seconds: float) -> None:
        """Learn from one decode step how long they take."""
        self._step_s = _smoothed(self._step_s, seconds)

    def _free_row(self) -> int:
        return max(row for row in range(self._all_rows) if row not in self.rows)


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

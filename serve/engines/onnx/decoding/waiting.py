"""The queue of answers that wait for a row, and who comes next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from serve.engines.onnx.decoding.generation import Generation


class WaitingQueue:
    """First come, first served; answers that can wait (``service_tier: flex``) come after all others."""

    def __init__(self) -> None:
        self._prompt: deque[Generation] = deque()
        self._flexible: deque[Generation] = deque()

    def __len__(self) -> int:
        return len(self._prompt) + len(self._flexible)

    def __iter__(self) -> Iterator[Generation]:
        yield from self._prompt
        yield from self._flexible

    @property
    def next(self) -> Generation | None:
        """Who comes next."""
        return next(iter(self), None)

    def length_for(self, generation: Generation) -> int:
        """How many of its kind wait: those who can wait take no place from the others."""
        return len(self._of(generation))

    def join(self, generation: Generation) -> None:
        self._of(generation).append(generation)

    def return_to(self, generation: Generation) -> None:
        """Back to the head of its queue: it had a row already."""
        self._of(generation).appendleft(generation)

    def leave(self, generation: Generation) -> None:
        self._of(generation).remove(generation)

    def _of(self, generation: Generation) -> deque[Generation]:
        return self._flexible if generation.flexible else self._prompt

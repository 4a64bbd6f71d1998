"""Keys and values kept from finished answers, so that a prompt's known beginning is not computed again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.engines.onnx.decoding.kv_cache import Block

SHORTEST_TOKENS = 16
"""Below this, copying saves nothing worth having."""


def common_prefix(left: NDArray[np.int64], right: NDArray[np.int64]) -> int:
    """Length of the longest common beginning of two token sequences."""
    shorter = min(len(left), len(right))
    differs = left[:shorter] != right[:shorter]
    return int(differs.argmax()) if differs.any() else shorter


@dataclass(frozen=True)
class Kept:
    """tokens: (n,); block: (2 * layers, kv_heads, n, head_size), see `Decoder.read`.

    `salt` says whose they are. Of the tokens the first `exact_tokens` were computed as a prompt, not one by one.
    """

    tokens: NDArray[np.int64]
    block: Block
    salt: str
    exact_tokens: int


class PrefixCache:
    """Least recently used sequences, together at most `limit_tokens` long."""

    def __init__(self, limit_tokens: int) -> None:
        self.limit_tokens = limit_tokens
        self.entries: list[Kept] = []

    @property
    def tokens(self) -> int:
        """How many tokens are kept."""
        return sum(len(entry.tokens) for entry in self.entries)

    def find(self, prompt: NDArray[np.int64], salt: str, *, exact: bool) -> tuple[Kept | None, int]:
        """The entry of `salt` that shares the longest beginning with `prompt`, and that length."""
        lengths = [
            common_prefix(entry.tokens[: entry.exact_tokens] if exact else entry.tokens, prompt)
            if entry.salt == salt
            else 0
            for entry in self.entries
        ]
        if not lengths or max(lengths) < SHORTEST_TOKENS:
            return None, 0
        best = int(np.argmax(lengths))
        entry = self.entries.pop(best)
        self.entries.append(entry)
        return entry, lengths[best]

    def wants(self, tokens: NDArray[np.int64], salt: str) -> bool:
        """Whether keeping `tokens` (n,) would add anything."""
        if not SHORTEST_TOKENS <= len(tokens) <= self.limit_tokens:
            return False
        return all(
            common_prefix(entry.tokens, tokens) < len(tokens) for entry in self.entries if entry.salt == salt
        )

    def keep(self, tokens: NDArray[np.int64], block: Block, salt: str, exact_tokens: int) -> None:
        """Add an entry, drop those it extends, then the oldest beyond the limit."""
        self.entries = [
            entry
            for entry in self.entries
            if entry.salt != salt or common_prefix(entry.tokens, tokens) < len(entry.tokens)
        ]
        self.entries.append(Kept(tokens.copy(), block, salt, exact_tokens))
        self.shrink(self.limit_tokens)

    def shrink(self, limit_tokens: int) -> None:
        """Drop the oldest entries until at most `limit_tokens` are kept."""
        while self.entries and self.tokens > limit_tokens:
            self.entries.pop(0)

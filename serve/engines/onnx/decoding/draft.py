"""Guesses of an answer's next tokens, to be checked all in one step.

Prompt lookup (Saxena 2023, "Prompt Lookup Decoding"): where the answer's last tokens stand earlier in the prompt or
the answer, what followed there is guessed to follow again. Leviathan et al. 2023 is the source of checking guesses
in one step; here each position is sampled as ever, and a guess only saves the step that would have come next.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LONGEST_TOKENS = 4
SHORTEST_TOKENS = 3
"""Ends that are looked for. With 2, most guesses in free text were wrong."""

COST = 0.35
"""Steps that one more token in a step takes: 0.25 to 0.4 with SmolLM2 on two cores."""

FIRST_CREDIT = 1.5
MOST_CREDIT = 6.0
CREDIT_PER_STEP = 0.02
"""An answer may lose this share of its steps to wrong guesses, and FIRST_CREDIT besides."""

Tokens = NDArray[np.int64]


class Draft:
    """What one answer stakes on guesses: it guesses more while they come true, and ever less while they do not."""

    def __init__(self) -> None:
        self.credit = FIRST_CREDIT
        """Steps that may still be lost."""

    def propose(self, tokens: Tokens, limit: int) -> Tokens:
        """What may follow `tokens` (n,): at most `limit` of them, often none. Called once before each step."""
        self.credit = min(MOST_CREDIT, self.credit + CREDIT_PER_STEP)
        affordable = min(limit, int(self.credit / COST))
        return continuation(tokens, affordable) if affordable > 0 else tokens[:0]

    def settle(self, proposed: int, accepted: int) -> None:
        """Take note of how many of the tokens came true, each of which saved a step."""
        self.credit += accepted - COST * proposed


def continuation(tokens: Tokens, limit: int) -> Tokens:
    """What followed the latest earlier place of the longest end of `tokens` (n,) that has one: at most `limit`."""
    for length in range(min(LONGEST_TOKENS, len(tokens) - 1), SHORTEST_TOKENS - 1, -1):
        earlier = np.lib.stride_tricks.sliding_window_view(tokens[:-1], length)
        places = np.flatnonzero((earlier == tokens[-length:]).all(axis=1))
        if len(places):
            start = int(places[-1]) + length
            return tokens[start : start + limit]
    return tokens[:0]

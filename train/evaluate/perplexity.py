"""Perplexity: exp of the mean negative log-likelihood per token, a number that two formats of one model share.

Every format is scored on the same token windows of the same text, so that the difference between two numbers is the
model's, not the measure's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from train.evaluate.logits import onnx_logits, torch_logits
from train.models.load import load_causal_lm

if TYPE_CHECKING:
    import numpy as np

OnWindow = Callable[[int, int], None]
"""Called after each window with (windows done, windows in all)."""


@dataclass(frozen=True)
class Perplexity:
    """``nll`` is the mean over ``tokens`` scored tokens, in nats."""

    nll: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll)


def perplexity(
    model_dir: Path,
    format: Literal["safetensors", "onnx-genai"],
    windows: np.ndarray,
    on_window: OnWindow | None = None,
) -> Perplexity:
    """Perplexity of a bundle's directory: torch in float32 for safetensors, onnxruntime for ONNX.

    windows: int64 (windows, window), of :func:`token_windows`.
    """
    logits = (
        onnx_logits(model_dir, windows)
        if format == "onnx-genai"
        else torch_logits(load_causal_lm(model_dir), windows)
    )
    return score(logits, windows, on_window)


def score(
    logits_of_windows: Iterator[np.ndarray], windows: np.ndarray, on_window: OnWindow | None = None
) -> Perplexity:
    """Fold logits, one window at a time, into a perplexity.

    logits: float32 (window, vocab); position i predicts token i + 1, so a window of n scores n - 1 tokens.
    """
    total = 0.0
    for done, (ids, logits) in enumerate(zip(windows, logits_of_windows, strict=True), start=1):
        for rows, targets in blocks(logits, ids):
            total += negative_log_likelihood(log_softmax(rows), targets)
        if on_window:
            on_window(done, len(windows))
    tokens = scored_tokens(windows)
    return Perplexity(total / tokens, tokens)


def scored_tokens(windows: np.ndarray) -> int:
    """The first token of each window is given, the others are predicted."""
    return windows.size - len(windows)


def blocks(logits: np.ndarray, ids: np.ndarray, rows: int = 64) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Logits (rows, vocab) with the tokens (rows,) they predict, few rows at a time to bound memory."""
    for start in range(0, len(ids) - 1, rows):
        stop = min(start + rows, len(ids) - 1)
        yield logits[start:stop], ids[start + 1 : stop + 1]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float32, the maximum taken out first. (rows, vocab) to (rows, vocab)."""
    import numpy as np

    shifted = logits.astype(np.float32)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def negative_log_likelihood(log_probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Sum of -log p(target), in nats. log_probabilities: (rows, vocab); targets: int (rows,)."""
    import numpy as np

    chosen = log_probabilities[np.arange(len(targets)), targets]
    return -float(chosen.sum(dtype=np.float64))

"""What a compression cost: perplexity, divergence from the parent and agreement with it, on the held text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.progress import Progress
from train.evaluate import compare, held_text, onnx_logits, token_windows, torch_logits

if TYPE_CHECKING:
    import numpy as np


def measure_export(parent: Path, export: Path, tokens: int, progress: Progress) -> dict[str, Any]:
    """The fields of ``train.evaluate.Comparison``: ``parent`` in torch, ``export`` in onnxruntime."""
    windows = held_windows(parent, tokens)
    return measure(parent, windows, onnx_logits(export, windows), progress)


def held_windows(parent: Path, tokens: int) -> np.ndarray:
    """The first ``tokens`` tokens of the held text: int64 (windows, window)."""
    return token_windows(parent / "tokenizer.json", held_text().text, tokens)


def measure(
    parent: Path, windows: np.ndarray, logits: Iterator[np.ndarray], progress: Progress
) -> dict[str, Any]:
    """logits: float32 (window, vocab) for each of ``windows``, of the compressed model."""
    from compress.mapped import mapped_causal_lm

    progress("measuring", 0.0)
    compared = compare(
        torch_logits(mapped_causal_lm(parent), windows),
        logits,
        windows,
        lambda done, total: progress("measuring", done / total),
    )
    return asdict(compared)

"""What a compression cost: perplexity, divergence from the parent and agreement with it, on the held text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.child import answer, run_child
from everlearn.progress import Progress
from train.evaluate import compare, held_text, onnx_logits, token_windows, torch_logits

if TYPE_CHECKING:
    import numpy as np

LOGITS = "logits.f32"


def measure_export(
    parent: Path, export: Path, tokens: int, scratch: Path, progress: Progress
) -> dict[str, Any]:
    """The fields of ``train.evaluate.Comparison``: ``parent`` in torch, ``export`` in onnxruntime.

    onnxruntime takes one and a half times the export's size, and gives it back with its process alone: what it
    predicts comes first, and waits in ``scratch`` for the parent.
    """
    import numpy as np

    windows = held_windows(parent, tokens)
    request = {"parent": str(parent), "export": str(export), "tokens": tokens, "scratch": str(scratch)}
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        run_child("compress.measure_decoder", request, progress)
        logits = np.memmap(scratch / LOGITS, dtype=np.float32, mode="r").reshape(*windows.shape, -1)
        return measure(parent, windows, iter(logits), progress)
    finally:
        (scratch / LOGITS).unlink(missing_ok=True)


def write_logits(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The child: what the export says of each window, one after the other in a file."""
    windows = held_windows(Path(request["parent"]), request["tokens"])
    progress("running the export", 0.0)
    with (Path(request["scratch"]) / LOGITS).open("wb") as file:
        for done, logits in enumerate(onnx_logits(Path(request["export"]), windows), start=1):
            logits.tofile(file)
            progress("running the export", done / len(windows))
    return {}


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


if __name__ == "__main__":
    answer(write_logits)

"""What a compression cost: perplexity, divergence from the parent and agreement with it, on the held text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.child import answer
from everlearn.progress import Progress
from train.evaluate import compare, held_text, onnx_logits, token_windows, torch_logits

if TYPE_CHECKING:
    import numpy as np


def keep_reference(parent: Path, tokens: int, file: Path, progress: Progress) -> None:
    """What the parent predicts for the held text, in a file: what reads it needs no torch."""
    from compress.mapped import mapped_causal_lm

    windows = held_windows(parent, tokens)
    model = mapped_causal_lm(parent)
    keep_logits(
        counted("asking the parent", torch_logits(model, windows), windows, progress), len(windows), file
    )


def measure_export(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The child: the fields of ``train.evaluate.Comparison`` of an export in onnxruntime, beside the kept reference.

    onnxruntime takes one and a half times the export's size. In a process of its own that is all there is.
    """
    import numpy as np

    windows = held_windows(Path(request["parent"]), request["tokens"])
    reference = np.load(request["reference"], mmap_mode="r")
    logits = counted("measuring", onnx_logits(Path(request["export"]), windows), windows, progress)
    return asdict(compare(iter(reference), logits, windows))


def counted(
    label: str, logits: Iterator[np.ndarray], windows: np.ndarray, progress: Progress
) -> Iterator[np.ndarray]:
    """``logits``, each of which is progress."""
    progress(label, 0.0)
    for done, one in enumerate(logits, start=1):
        yield one
        progress(label, done / len(windows))


def keep_logits(logits: Iterator[np.ndarray], rows: int, file: Path) -> np.ndarray:
    """Logits on disk, as a view of the file: float32 (rows, window, vocab)."""
    import numpy as np

    first = next(logits)
    kept = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(rows, *first.shape))
    kept[0] = first
    for at, one in enumerate(logits, start=1):
        kept[at] = one
    return kept


def held_windows(parent: Path, tokens: int) -> np.ndarray:
    """The first ``tokens`` tokens of the held text: int64 (windows, window)."""
    return token_windows(parent / "tokenizer.json", held_text().text, tokens)


def measure(
    parent: Path, windows: np.ndarray, logits: Iterator[np.ndarray], progress: Progress
) -> dict[str, Any]:
    """logits: float32 (window, vocab) for each of ``windows``, of the compressed model."""
    from compress.mapped import mapped_causal_lm

    reference = torch_logits(mapped_causal_lm(parent), windows)
    return asdict(compare(reference, counted("measuring", logits, windows, progress), windows))


if __name__ == "__main__":
    answer(measure_export)

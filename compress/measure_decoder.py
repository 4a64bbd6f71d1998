"""An exported decoder beside its parent, on the held text. Run as a child, through ``everlearn.child``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from everlearn.child import answer
from everlearn.progress import Progress


def measure(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The fields of ``train.evaluate.Comparison``: ``parent_dir`` in torch, ``directory`` in onnxruntime."""
    from train.evaluate import compare, held_text, load_causal_lm, onnx_logits, token_windows, torch_logits

    parent, export = Path(request["parent_dir"]), Path(request["directory"])
    progress("measuring", 0.0)
    windows = token_windows(parent / "tokenizer.json", held_text().text, request["tokens"])
    compared = compare(
        torch_logits(load_causal_lm(parent), windows),
        onnx_logits(export, windows),
        windows,
        lambda done, total: progress("measuring", done / total),
    )
    return asdict(compared)


if __name__ == "__main__":
    answer(measure)

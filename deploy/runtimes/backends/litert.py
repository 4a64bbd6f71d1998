"""LiteRT (TensorFlow Lite): model.tflite, float32, for one text padded to exactly `context` tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
from ai_edge_litert.interpreter import Interpreter

from deploy.runtimes.source import Feeds, Run, Source

FILE = "model.tflite"


def write(source: Source, out: Path) -> None:
    """Exports the model at its one length. Its inputs are int32, args_0 and on, in the order of `source.inputs`."""
    litert_torch.convert(source.module, source.example(source.context)).export(str(out / FILE))


def load(source: Source, out: Path, threads: int) -> Run:
    """Pads a text on the right, where a causal model does not look from earlier tokens, and cuts the answer."""
    interpreter: Any = Interpreter(str(out / FILE), num_threads=threads)
    runner = interpreter.get_signature_runner()

    def run(feeds: Feeds) -> np.ndarray:
        length = feeds["input_ids"].shape[1]
        rows = (np.pad(feeds[name], ((0, 0), (0, source.context - length))) for name in source.inputs)
        (answer,) = runner(**{f"args_{at}": row.astype(np.int32) for at, row in enumerate(rows)}).values()
        return answer[:, :length] if source.task == "generate" else answer

    return run

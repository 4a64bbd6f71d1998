"""Converts a bundle and compares the result with torch: ``python -m deploy.runtimes.child``, in the runtime's environment.

The request: ``source`` and ``out`` (folders), ``task``, ``backend`` (a module), ``context`` (tokens, or null) and
``threads``.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deploy.runtimes.source import Run, Source, load_source
from deploy.runtimes.table import BOUND
from everlearn.errors import EverlearnError, Unsupported
from everlearn.processes.child import answer
from everlearn.progress import Progress

TEXTS = (7, 160)
"""Tokens of the two texts that are compared, less where the context is shorter; the second exceeds what was traced."""
TIMED_S = 1.0
REASON_CHARS = 400


def convert(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Fills ``out``. Raises Unsupported where the runtime cannot take the model, or computes something else."""
    import torch

    torch.set_num_threads(request["threads"])
    progress("loading the model", None)
    source = load_source(Path(request["source"]), request["task"], request["context"])
    out = Path(request["out"])
    progress("converting", None)
    began = time.monotonic()
    try:
        backend = importlib.import_module(request["backend"])
        backend.write(source, out)
        converted = time.monotonic()
        progress("comparing with torch", None)
        run: Run = backend.load(source, out, request["threads"])
        difference = largest_difference(source, run)
    except (EverlearnError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever a converter makes of a model that it does not know
        raise Unsupported(f"{type(error).__name__}: {shorten(str(error))}") from error
    if not difference <= BOUND:
        raise Unsupported(
            f"it computes something else: off from torch by {difference:.2g}, more than {BOUND:g}"
        )
    return {
        "inputs": source.inputs,
        "output": source.output,
        "context": source.context,
        "difference": difference,
        "seconds": converted - began,
        "tokens_per_s": speed(source, run),
    }


def largest_difference(source: Source, run: Run) -> float:
    """The largest absolute one of two texts, each of which an encoder also gets with padding."""
    found = 0.0
    for length in sorted({min(length, source.context) for length in TEXTS}):
        padded = min(length + 5, source.context)
        texts = [source.feeds(length, length)]
        if source.task == "embed":
            texts.append(source.feeds(length, padded))
        for feeds in texts:
            expected, got = source.run(feeds), run(feeds)
            if got.shape != expected.shape:
                raise Unsupported(f"it answers with the shape {got.shape} instead of {expected.shape}")
            found = max(found, float(np.abs(got - expected).max())) if np.isfinite(got).all() else np.inf
    return found


def speed(source: Source, run: Run) -> float:
    """Tokens per second of one text of the longer kind."""
    feeds = source.feeds(min(TEXTS[-1], source.context), min(TEXTS[-1], source.context))
    began, times = time.monotonic(), 0
    while time.monotonic() < began + TIMED_S:
        run(feeds)
        times += 1
    return times * feeds["input_ids"].shape[1] / (time.monotonic() - began)


def shorten(said: str) -> str:
    """One line of a converter's message, its beginning."""
    return " ".join(said.split())[:REASON_CHARS]


if __name__ == "__main__":
    answer(convert)

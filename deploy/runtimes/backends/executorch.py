"""ExecuTorch: model.pte, float32, its products by XNNPACK, for one text of at most `context` tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime

from deploy.runtimes.source import Feeds, Run, Source

FILE = "model.pte"


def write(source: Source, out: Path) -> None:
    """Exports the model with one open length, and gives XNNPACK what it can compute."""
    length: Any = torch.export.Dim("seq", min=1, max=source.context)
    example = source.example(min(12, source.context))
    shapes: Any = tuple({1: length} for _ in example)
    by_name = shapes if source.task == "generate" else (shapes,)  # an encoder takes *tensors
    exported = torch.export.export(source.module, example, dynamic_shapes=by_name, strict=False)
    program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
    with (out / FILE).open("wb") as file:
        program.write_to_file(file)


def load(source: Source, out: Path, threads: int) -> Run:
    """Runs the file's `forward`."""
    method = Runtime.get().load_program(out / FILE).load_method("forward")
    if method is None:
        raise RuntimeError(f"{FILE} has no method forward")

    def run(feeds: Feeds) -> np.ndarray:
        answer: Any = method.execute([torch.from_numpy(feeds[name]) for name in source.inputs])
        return answer[0].numpy()

    return run

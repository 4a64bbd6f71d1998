"""OpenVINO IR: model.xml and model.bin, float32, for texts of any length and number."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType]: it reports each conversion to its maker

import openvino as ov

from deploy.runtimes.source import Feeds, Run, Source

FILE = "model.xml"
TRACED = 12


def write(source: Source, out: Path) -> None:
    """Traces the model; shapes stay open."""
    dynamic = ov.PartialShape([-1, -1])
    model: Any = ov.convert_model(
        source.module, example_input=source.example(TRACED), input=[dynamic] * len(source.inputs)
    )
    for name, port in zip(source.inputs, model.inputs, strict=True):
        port.get_tensor().set_names({name})
    model.outputs[0].get_tensor().set_names({source.output})
    ov.save_model(model, out / FILE, compress_to_fp16=False)


def load(source: Source, out: Path, threads: int) -> Run:
    """Runs it on the CPU in float32, which OpenVINO lowers by itself where the CPU has bfloat16."""
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = ov.Core().compile_model(out / FILE, "CPU", options)

    def run(feeds: Feeds) -> np.ndarray:
        return compiled({name: feeds[name] for name in source.inputs})[source.output]

    return run

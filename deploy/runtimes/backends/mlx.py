"""MLX: the weights as they are, and a config.json as mlx-lm reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model

from deploy.runtimes.source import Feeds, Run, Source


def write(source: Source, out: Path) -> None:
    """Copies the weights; writes config.json with what mlx-lm looks for where transformers 4 wrote it."""
    for file in source.directory.glob("*.safetensors*"):
        shutil.copyfile(file, out / file.name)
    config = json.loads((source.directory / "config.json").read_bytes())
    (out / "config.json").write_text(json.dumps(as_mlx_reads(config), indent=2, sort_keys=True) + "\n")


def as_mlx_reads(config: dict[str, Any]) -> dict[str, Any]:
    """mlx-lm takes `rope_theta` and `rope_scaling`; of transformers 5's `rope_parameters` many of its models know nothing.

    They would then turn positions by their default base without a word.
    """
    positions = config.get("rope_parameters")
    if not isinstance(positions, dict):
        return config
    said = {key: config[key] for key in config if key != "rope_parameters"}
    if "full_attention" in positions:  # one kind of positions for each kind of layer
        said["rope_local_base_freq"] = positions["sliding_attention"]["rope_theta"]
        positions = positions["full_attention"]
    said["rope_theta"] = positions.get("rope_theta", 10000.0)
    if "partial_rotary_factor" in positions:
        said.setdefault("partial_rotary_factor", positions["partial_rotary_factor"])
    if positions.get("rope_type", "default") != "default":
        said["rope_scaling"] = {key: value for key, value in positions.items() if key != "rope_theta"}
    return said


def load(source: Source, out: Path, threads: int) -> Run:
    """Runs it in float32: on the CPU where there is no Metal."""
    model: Any = load_model(out)[0]
    model.set_dtype(mx.float32)

    def run(feeds: Feeds) -> np.ndarray:
        return np.array(model(mx.array(feeds["input_ids"])))

    return run

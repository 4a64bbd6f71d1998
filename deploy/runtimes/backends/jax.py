"""JAX: the weights as they are, and model.py, whose plain functions open and run them."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np

from deploy.runtimes import jax_model
from deploy.runtimes.source import Feeds, Run, Source


def write(source: Source, out: Path) -> None:
    """Copies the weights, config.json, and the functions."""
    for file in (*source.directory.glob("*.safetensors*"), source.directory / "config.json"):
        shutil.copyfile(file, out / file.name)
    shutil.copyfile(jax_model.__file__, out / "model.py")


def load(source: Source, out: Path, threads: int) -> Run:
    """Runs it in float32."""
    weights, config = jax_model.load(out)
    forward = jax.jit(lambda ids: jax_model.logits(weights, config, ids)[0])

    def run(feeds: Feeds) -> np.ndarray:
        return np.asarray(forward(feeds["input_ids"]))

    return run

"""``everlearn compress MODEL --target "size<=60MB"``: the best model that fits, found instead of guessed.

What fits by quantizing alone is quantized, with as much kept at 8 bits as there is room for. Where even 4 bits are too
many, something must go: fewer layers, narrower feed-forward layers, and half of each are tried on the calibration
set, and what changes the predictions least is pruned, healed and quantized. Trials are kept: an interrupted search
goes on. ``speed>=6x`` is such a search, too: a decoder reads all its weights for each token, so that a speed is a size.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.recipe import Calibration, PlannedTarget, Prune
from everlearn.bundles.decoder_config import is_tied
from everlearn.bundles.safetensors_header import read_header
from everlearn.errors import InvalidInput
from everlearn.processes.child import answer
from everlearn.progress import Progress

UNITS = {"kB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}
BLOCK = 32
SCALE_BYTES = 2
HIGH_PRECISION_FRACTIONS = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.0)
SMALLEST = PlannedTarget(weights="gptq", high_precision_fraction=0, head_bits=4)
GRAPH_BYTES, GRAPH_BYTES_PER_LAYER = 12_000, 8_000
"""Of the graph and the configurations, about."""


@dataclass(frozen=True)
class Goal:
    """What is asked for: so many bytes at most, or at least so many times the parent's tokens per second."""

    size_bytes: float | None = None
    speedup: float | None = None


def parse_target(said: str) -> Goal:
    """Reads ``size<=60MB`` or ``speed>=2x``. Raises InvalidInput."""
    number = r"(\d+(?:\.\d+)?)"
    size = re.fullmatch(rf"\s*size\s*<=\s*{number}\s*(kB|MB|GB)\s*", said)
    if size and float(size[1]) > 0:
        return Goal(size_bytes=float(size[1]) * UNITS[size[2]])
    speed = re.fullmatch(rf"\s*speed\s*>=\s*{number}\s*x\s*", said)
    if speed and float(speed[1]) > 0:
        return Goal(speedup=float(speed[1]))
    raise InvalidInput(
        f"the target is written as size<=60MB (kB, MB or GB) or as speed>=2x, not {said!r}", param="target"
    )


@dataclass(frozen=True)
class DecoderSizes:
    """How many weights a decoder's matrices have: of one layer's attention, of one's feed-forward, of the output."""

    layers: int
    ffn: int
    attention: int
    feed_forward: int
    head: int
    tied: bool
    other_bytes: int

    @classmethod
    def read(cls, model_dir: Path) -> DecoderSizes:
        """From the headers of its safetensors, and its tokenizer. Raises InvalidInput for another layout."""
        config = json.loads((model_dir / "config.json").read_text())
        headers = (read_header(file) for file in model_dir.glob("model*.safetensors"))
        shapes = {name: one["shape"] for header in headers for name, one in header.items()}
        layer = [name for name in shapes if ".layers.0." in name and len(shapes[name]) == 2]
        embedding = next((name for name in shapes if "embed_tokens" in name), None)
        if not layer or embedding is None or "intermediate_size" not in config:
            raise InvalidInput("this model's layers are not recognised: say what to prune in a recipe")
        feed = sum(math.prod(shapes[name]) for name in layer if ".mlp." in name)
        vectors = sum(math.prod(shape) for shape in shapes.values() if len(shape) == 1)
        files = sum(file.stat().st_size for file in model_dir.glob("tokenizer*"))
        return cls(
            layers=config["num_hidden_layers"],
            ffn=config["intermediate_size"],
            attention=sum(math.prod(shapes[name]) for name in layer) - feed,
            feed_forward=feed,
            head=math.prod(shapes[embedding]),
            tied=is_tied(config),
            other_bytes=files
            + 4 * vectors
            + GRAPH_BYTES
            + GRAPH_BYTES_PER_LAYER * config["num_hidden_layers"],
        )

    def int4_bytes(self, target: PlannedTarget, layers: int | None = None, ffn: int | None = None) -> int:
        """What int4-onnx will have on disk, within a hundredth; with so many layers, of such a width."""
        layers, ffn = layers or self.layers, ffn or self.ffn
        weights = layers * (self.attention + self.feed_forward * ffn // self.ffn)
        bits = 4 + 4 * target.high_precision_fraction
        total = quantized_bytes(weights, bits) + quantized_bytes(self.head, target.head_bits)
        untied = 0 if self.tied else 4 * self.head  # the builder keeps such an embedding in float32
        return int(total) + untied + self.other_bytes


def quantized_bytes(weights: int, bits: float) -> float:
    """Codes, and a float16 scale per block."""
    return weights * (bits / 8 + SCALE_BYTES / BLOCK)


def without_pruning(shape: DecoderSizes, limit: float) -> list[PlannedTarget]:
    """What should fit, the best first: as many weights at 8 bits as there is room for."""
    options = [PlannedTarget(weights="gptq", high_precision_fraction=one) for one in HIGH_PRECISION_FRACTIONS]
    return [one for one in (*options, SMALLEST) if shape.int4_bytes(one) <= limit]


def prunings(shape: DecoderSizes, limit: float) -> dict[str, Prune]:
    """Three ways to fit, as much as each can keep: fewer layers, narrower ones, half of each. Fewer where none fits."""

    def widest(layers: int) -> int | None:
        fits = (
            width for width in range(shape.ffn - shape.ffn % BLOCK, 0, -BLOCK)
            if shape.int4_bytes(SMALLEST, layers, width) <= limit
        )  # fmt: skip
        return next(fits, None)

    found: dict[str, Prune] = {}
    deepest = next((n for n in range(shape.layers, 0, -1) if shape.int4_bytes(SMALLEST, n) <= limit), None)
    if deepest:
        found["layers"] = Prune(layers=deepest)
    if narrow := widest(shape.layers):
        found["width"] = Prune(ffn=narrow)
    if deepest and (middle := (deepest + shape.layers) // 2) not in (deepest, shape.layers):
        width = widest(middle)
        if width and width < shape.ffn:
            found["both"] = Prune(layers=middle, ffn=width)
    return found


def kept_trials(folder: Path, request: Mapping[str, Any]) -> Path:
    """Where the answer to these trials is kept."""
    key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:12]
    return folder / f"search-{key}.json"


def try_prunings(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The child: divergence of each pruning, unhealed, on a window that it did not see, and which layers it dropped."""
    import torch

    from compress.prune.layers import least_missed
    from compress.prune.prune_decoder import pruned
    from compress.quantize.calibration import calibration_windows
    from compress.quantize.sensitivity import divergence, log_probabilities
    from train.models.load import load_causal_lm

    model_dir = Path(request["model_dir"])
    chosen = Calibration.model_validate(request["calibration"])
    windows = torch.from_numpy(calibration_windows(chosen, model_dir / "tokenizer.json"))
    seen = windows[1:] if len(windows) > 1 else windows
    model = load_causal_lm(model_dir)
    depth = model.config.num_hidden_layers
    tried = {name: Prune.model_validate(said) for name, said in request["prunings"].items()}
    most = max(depth - (one.layers or depth) for one in tried.values())
    order = least_missed(
        model, seen, most, lambda done, total: progress("trying without each layer", done / total)
    )
    found: dict[str, Any] = {}
    with torch.no_grad():
        expected = log_probabilities(model, windows[:1])
        for name, wanted in tried.items():
            dropped = sorted(order[: depth - (wanted.layers or depth)])
            named = wanted.model_copy(update={"layers": None, "drop": tuple(dropped)})
            smaller, _ = pruned(model, named, seen, progress)
            found[name] = {"divergence": divergence(expected, smaller, windows[:1]), "dropped": dropped}
    return {"trials": found}


def best_of(trials: Mapping[str, Mapping[str, Any]], tried: Mapping[str, Prune]) -> Prune:
    """The pruning that changed the predictions least, with its layers named."""
    name = min(trials, key=lambda one: trials[one]["divergence"])
    dropped = tuple(trials[name]["dropped"])
    return tried[name].model_copy(update={"layers": None, "drop": dropped} if dropped else {})


if __name__ == "__main__":
    answer(try_prunings)

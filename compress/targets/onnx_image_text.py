"""A model of images and texts (CLIP) as two ONNX graphs, a tower each. Run as a child process.

``text_model.onnx`` and ``vision_model.onnx``: inputs and outputs are named as transformers and optimum name them
(``input_ids``, ``attention_mask``, ``pixel_values``; ``text_embeds``, ``image_embeds``). Projection and normalisation are
in the graphs, so that a product of two vectors is their cosine. int8 is that of :mod:`compress.targets.onnx_encoder`;
the patches' convolution and the projection keep float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.image_text import (
    Embed,
    Pairs,
    Tower,
    compare_embeddings,
    embedded,
    image_feeds,
    load_towers,
    probe_pairs,
    stored_pairs,
    text_feeds,
)
from compress.measure.parity import Drifted
from compress.quantize.smooth_encoder import smooth
from compress.recipe import Calibration
from compress.sentence_encoder import max_length
from compress.targets.onnx_encoder import OPSET, SAME_GRAPH, quantize, session_predict, write_tokenizer
from everlearn.errors import InvalidInput, Unsupported
from everlearn.processes.child import answer
from everlearn.progress import Progress
from train.models.image_text import MEAN, PREPROCESSOR, STD

TEXT, VISION = "text_model.onnx", "vision_model.onnx"
BICUBIC = 3
"""Pillow's number."""


def build_onnx_image_text(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Writes both graphs, tokenizer.json and the configs; returns how, and the metrics."""
    model_dir, directory = Path(request["model_dir"]), Path(request["directory"])
    said = preprocessing(model_dir)
    write_tokenizer(model_dir, directory)
    longest = write_config(model_dir, directory)
    (directory / PREPROCESSOR).write_text(json.dumps(said, indent=1))
    chosen = Calibration.model_validate(request["calibration"])
    progress("loading the model", None)
    pairs = calibration_pairs(chosen, model_dir, said["crop_size"]["height"])
    feeds = feeds_of(pairs.part(slice(1, None, 2)), said)
    towers, graphs = load_towers(model_dir), (directory / TEXT, directory / VISION)
    theirs = vectors((towers[0].embed, towers[1].embed), feeds)
    made: dict[str, Any] = {}
    if request["precision"] == "int8":
        progress("finding out what 8 bits cost each layer", None)
        half = pairs.part(slice(0, None, 2))
        made = smooth_both(towers, feeds_of(half, said))
    progress("exporting the graphs", None)
    for tower, graph, example in zip(towers, graphs, examples(feeds), strict=True):
        trace(tower, graph, example)
    near = compare_embeddings(vectors(session_embeds(graphs, towers), feeds), theirs, None)
    if not near["cosine_min"] >= SAME_GRAPH:
        raise Drifted(
            f"an embedding of the graphs in float32 has cosine {near['cosine_min']:.4f} with torch's; at least "
            f"{SAME_GRAPH} is asked, so they are not this model. Nothing was registered"
        )
    if request["precision"] == "int8":
        progress("quantizing", None)
        for tower, graph in zip(towers, graphs, strict=True):
            quantize(graph, tower.rounded)
    progress("measuring", None)
    ours = vectors(session_embeds(graphs, towers), feeds)
    keys = pairs.part(slice(1, None, 2)).keys
    metrics = {**compare_embeddings(ours, theirs, keys), "dimensions": ours[0].shape[1]}
    return {"opset": OPSET, "max_length": longest, "metrics": metrics, **made}


Feeds = tuple[list[dict[str, NDArray[np.int64]]], list[dict[str, NDArray[np.float32]]]]
"""Batches of texts, and of images."""


def feeds_of(pairs: Pairs, said: Mapping[str, Any]) -> Feeds:
    """As an engine sends them."""
    return text_feeds(pairs.texts), image_feeds(pairs.images, said["image_mean"], said["image_std"])


def vectors(embeds: tuple[Embed, Embed], feeds: Feeds) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of all texts and of all images, float32 (n, dim) each."""
    return embedded(embeds[0], feeds[0]), embedded(embeds[1], feeds[1])


def session_embeds(graphs: tuple[Path, Path], towers: tuple[Tower, Tower]) -> tuple[Embed, Embed]:
    """What onnxruntime makes of the graphs."""

    def of(graph: Path, tower: Tower) -> Embed:
        predict = session_predict(graph, [tower.output])
        return lambda feeds: predict(feeds)[0]

    return of(graphs[0], towers[0]), of(graphs[1], towers[1])


def examples(feeds: Feeds) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Two rows of each tower's first batch."""
    first = [tuple(torch.from_numpy(one[:2]) for one in side[0].values()) for side in feeds]
    return first[0], first[1]


def smooth_both(towers: tuple[Tower, Tower], feeds: Feeds) -> dict[str, Any]:
    """Smooths both in place; returns what a bundle says of that. Texts go alone, without padding."""
    made: dict[str, Any] = {"smoothed": {}, "by_token": []}
    texts = [
        tuple(torch.from_numpy(one[row : row + 1, : mask.sum()]) for one in batch.values())
        for batch in feeds[0]
        for row, mask in enumerate(batch["attention_mask"])
    ]
    images = [tuple(torch.from_numpy(one) for one in batch.values()) for batch in feeds[1]]
    for name, tower, batches in zip(("text_model", "vision_model"), towers, (texts, images), strict=True):
        smoothed, by_token = smooth(tower, batches)
        made["smoothed"] |= {f"{name}.{layer}": strength for layer, strength in smoothed.items()}
        made["by_token"] += [f"{name}.{layer}" for layer in by_token]
    sha256 = hashlib.sha256()
    for one in (*feeds[0], *feeds[1]):
        for values in one.values():
            sha256.update(values.tobytes())
    seen = {"texts": len(texts), "images": sum(len(one["pixel_values"]) for one in feeds[1])}
    return {**made, "calibration_seen": {**seen, "sha256": sha256.hexdigest()}}


def trace(tower: Tower, graph: Path, example: tuple[Tensor, ...]) -> None:
    """With a free batch and sequence; attention is spelt out, as :func:`compress.targets.onnx_encoder.trace` does."""
    tower.body.set_attn_implementation("eager")
    with torch.inference_mode():
        torch.onnx.export(
            tower,
            example,
            str(graph),
            input_names=list(tower.inputs),
            output_names=[tower.output],
            dynamic_axes={
                **{name: dict(free) for name, free in tower.inputs.items()},
                tower.output: {0: "batch"},
            },
            opset_version=OPSET,
            dynamo=False,
        )


def write_config(model_dir: Path, directory: Path) -> int:
    """The parent's config.json with ``max_length``: the tokens that a text may have."""
    config = json.loads((model_dir / "config.json").read_bytes())
    limit = max_length(model_dir)
    config |= {"max_length": limit, "normalized": True}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    return limit


def preprocessing(model_dir: Path) -> dict[str, Any]:
    """What preprocessor_config.json says, CLIP's own where there is none, with every key that is read here.

    Raises Unsupported where images are read otherwise than ``everlearn.images.pixels`` does.
    """
    size = json.loads((model_dir / "config.json").read_bytes())["vision_config"].get("image_size", 224)
    file = model_dir / PREPROCESSOR
    given = json.loads(file.read_bytes()) if file.is_file() else {}
    read = {
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    }
    for key, right in read.items():
        said = given.get(key, right)
        shorter = {"size": {"shortest_edge": said}, "crop_size": {"height": said, "width": said}}
        said = shorter.get(key, said) if isinstance(said, int) and not isinstance(said, bool) else said
        if said != right and not (key == "rescale_factor" and abs(float(said) - right) < 1e-6):
            raise Unsupported(
                f"{PREPROCESSOR} says {key}: {said}; images are read with {right} alone", param=key
            )
    return {
        "image_processor_type": "CLIPImageProcessor",
        **read,
        "image_mean": given.get("image_mean", list(MEAN)),
        "image_std": given.get("image_std", list(STD)),
        "do_convert_rgb": True,
    }


def calibration_pairs(chosen: Calibration, model_dir: Path, size: int) -> Pairs:
    """Those of the recipe's store, or else probes. Raises InvalidInput for a text, and for a store without images of the
    size that the model sees."""
    if chosen.text is None and chosen.store is None:
        return probe_pairs(model_dir, size)
    pairs = stored_pairs(chosen.store, chosen.seed) if chosen.store else None
    if pairs is None or pairs.images.shape[1] != size:
        raise InvalidInput(
            f"calibration: a model of images and texts is calibrated on a store of pairs, with images of {size} pixels a "
            f"side, not on {chosen.store or chosen.text}",
            param="calibration",
        )
    return pairs


if __name__ == "__main__":
    answer(build_onnx_image_text)

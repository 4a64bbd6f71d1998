"""An encoder with some of its layers, and how near it stays. Run as a child process.

What went is taken over in closed form, as :mod:`compress.prune.reconstruct` does it for decoders: the layer before each gap
has its last matrix solved for anew, so that its output comes as near as it can to that of the last missing layer.
Here a norm follows on the sum (as BERT has it), so the layer takes over the missing one's norm as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.distill.decoder_objective import outputs_of
from compress.prune.layers import cheapest, chosen_layers, layers_of, with_layers
from compress.prune.reconstruct import changed, least_squares, rounded
from compress.quantize.calibration import calibration_windows, seen
from compress.quantize.capture import capture_inputs
from compress.recipe import Calibration, Prune
from compress.sentence_encoder import (
    Encoder,
    embedding_similarity,
    load_encoder,
    save_encoder,
    texts_of,
    whole_texts,
)
from everlearn.errors import Unsupported
from everlearn.processes.child import answer
from everlearn.progress import Progress
from train.models.save import saved_dtype

TRIAL_TEXTS = 16
"""Of each length."""


def build_pruned_encoder(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Prunes ``model_dir`` into ``directory``: how it was ``made``, and how it ``compared`` with its parent.

    Raises InvalidInput, and Unsupported for what is no layer.
    """
    model_dir, directory = Path(request["model_dir"]), Path(request["directory"])
    wanted = Prune.model_validate(request["prune"])
    chosen = Calibration.model_validate(request["calibration"])
    windows = calibration_windows(chosen, model_dir / "tokenizer.json")
    progress("loading the encoder", None)
    whole = load_encoder(model_dir)
    smaller, made = pruned(whole, wanted, texts_of(windows.reshape(-1), model_dir), progress)
    progress("measuring", None)
    compared = embedding_similarity(smaller.embed, whole.embed, model_dir)
    progress("writing", None)
    save_encoder(smaller, saved_dtype(model_dir), directory)
    return {"made": {**made, "calibration_seen": seen(windows)}, "compared": compared}


def pruned(
    whole: Encoder, wanted: Prune, texts: Sequence[Tensor], progress: Progress
) -> tuple[Encoder, dict[str, Any]]:
    """The encoder without some layers, and which; texts: batches, int64 (texts, seq) each.

    Raises InvalidInput for layers that there are not, Unsupported for another wish or architecture.
    """
    if not wanted.layers_alone:
        raise Unsupported("of an encoder whole layers are taken out: prune by layers or drop")
    layers = layers_of(whole.body)
    depth = whole.body.config.num_hidden_layers
    if len(layers) != depth:
        raise Unsupported("prune: this architecture's layers share their weights")
    gone = chosen_layers(
        wanted,
        depth,
        lambda drop: cheapest(
            layers,
            away_from(whole, [some[-TRIAL_TEXTS:] for some in texts]),
            drop,
            lambda done, total: progress("trying without each layer", done / total),
        ),
    )
    kept = [at for at in range(depth) if at not in gone]
    smaller = Encoder(with_layers(whole.body, kept), whole.pooling).eval()
    distances = take_over(
        whole, smaller, kept, texts, lambda done: progress("solving for what was taken out", done)
    )
    return smaller, {"dropped": gone, "reconstructed": rounded(distances)}


def away_from(encoder: Encoder, texts: Sequence[Tensor]) -> Callable[[], float]:
    """How far its embeddings are, when called, from what they are now: the mean cosine distance."""

    def embeddings() -> np.ndarray:
        return np.concatenate([encoder.embed(whole_texts(some)) for some in texts])

    before = embeddings()
    return lambda: float(1 - (embeddings() * before).sum(-1).mean())


@torch.no_grad()
def take_over(
    whole: Encoder,
    smaller: Encoder,
    kept: Sequence[int],
    texts: Sequence[Tensor],
    on_part: Callable[[float], None] | None = None,
) -> dict[int, tuple[float, float]]:
    """Solves the layers before gaps, one after the other; the distance on held-out tokens before and after, by layer.

    What is solved for is the sum that the missing layer's norm reads. The norm takes each token's mean and deviation
    out of it, so they are free: they stay what the layer gives, and each token counts relative to its deviation. Layers
    that do not end in ``output.dense`` and ``output.LayerNorm`` stay as they were.
    """
    theirs, ours = layers_of(whole.body), layers_of(smaller.body)
    pairs = [
        pair
        for pair in changed(whole.body, smaller.body, kept)
        if is_solvable(smaller, pair[0], texts[0][:2])
    ]
    distances: dict[int, tuple[float, float]] = {}
    for number, (at, owed) in enumerate(pairs):
        layer, missing = ours[at].output, theirs[owed].output
        inputs, targets, weights = [], [], []
        for done, some in enumerate(texts):
            (wanted,) = read_by([missing.LayerNorm], whole, some)
            read, given = read_by([layer.dense, layer.LayerNorm], smaller, some)
            inputs.append(nn.functional.pad(read, (0, 1), value=1.0))  # the last one is the bias
            targets.append(scaled_like(given, wanted) - given)
            weights.append(1 / given.var(-1, keepdim=True).clamp_min(1e-12))
            if on_part:
                on_part((number + done / len(texts)) / len(pairs))
        mixed = torch.randperm(sum(map(len, inputs)), generator=torch.Generator().manual_seed(0))
        change, before, after = least_squares(
            *(torch.cat(parts)[mixed] for parts in (inputs, targets, weights))
        )  # the last tokens, which choose the ridge, are of all lengths
        if after < before:
            layer.dense.weight += change[:-1].T
            layer.dense.bias += change[-1]
            layer.LayerNorm.load_state_dict(missing.LayerNorm.state_dict())
        distances[at] = (before, after)
    return distances


def scaled_like(given: Tensor, wanted: Tensor) -> Tensor:
    """``wanted`` with each row's mean and deviation as ``given`` has them; both float32 (tokens, width)."""
    middle, spread = given.mean(-1, keepdim=True), given.std(-1, keepdim=True)
    plain = (wanted - wanted.mean(-1, keepdim=True)) / wanted.std(-1, keepdim=True).clamp_min(1e-6)
    return plain * spread + middle


def read_by(modules: Sequence[nn.Module], encoder: Encoder, texts: Tensor) -> list[Tensor]:
    """What each of ``modules`` gets while ``encoder`` reads texts, int64 (texts, seq); float32 (texts * seq, width)."""
    got: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, given: Tensor) -> None:
        got[module] = given.flatten(0, 1)

    with capture_inputs(modules, keep):
        encoder.body(input_ids=texts, attention_mask=torch.ones_like(texts))
    return [got[module] for module in modules]


def is_solvable(encoder: Encoder, at: int, texts: Tensor) -> bool:
    """Whether this layer's output is ``output.LayerNorm`` of something plus ``output.dense``."""
    output = getattr(layers_of(encoder.body)[at], "output", None)
    norm, dense = getattr(output, "LayerNorm", None), getattr(output, "dense", None)
    if not (isinstance(norm, nn.LayerNorm) and isinstance(dense, nn.Linear) and dense.bias is not None):
        return False
    with outputs_of(encoder.body, [at]) as given:
        (read,) = read_by([norm], encoder, texts)
    return torch.allclose(norm(read), given[at].flatten(0, 1), rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    answer(build_pruned_encoder)

"""The parity gate: refuses a result that does not compute what its weights say, the same for every target.

Rounding costs something, and a wrong graph can hide behind that: a model whose scaled rotary positions were dropped is
0.3 nats from its parent, and 4 bits may cost 1. So a result is first compared with torch computing with **the same rounded
weights**, where nothing but the order of sums differs, and only then with its parent (``max_divergence`` in :mod:`compress.targets.table`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.targets.table import Target
from everlearn.errors import EverlearnError
from train.evaluate.comparison import compare
from train.evaluate.logits import torch_logits
from train.models.load import load_causal_lm

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SAME_GRAPH = 0.001
"""Nats per token: two engines that compute one model in float32 differ by less than 0.00001."""
KERNELS = 0.1
"""Nats per token that kernels may add which round what they multiply, too, of a graph that is right in float32: onnxruntime's
add 0.004 to SmolLM2 on x86 and, by token instead of block, 0.04 on arm64."""
ANOTHER_TARGET = (
    "Another target, or vLLM with the float weights, may serve it: docs/supported-architectures.md"
)


class Drifted(EverlearnError):
    """What was made is not its parent any more; nothing was registered."""

    code = "drifted"


def refuse_another(divergence: float, limit: float, what: str, instead: str = ANOTHER_TARGET) -> None:
    """Raises Drifted where ``what`` was made is further than ``limit`` nats from torch with the same weights."""
    if not divergence <= limit:
        raise Drifted(
            f"{what} is {divergence:.4f} nats per token away from torch with the same weights; at most {limit:g} is "
            f"accepted, so it is not this model. Nothing was registered. {instead}"
        )


def refuse_drift(divergence: float, target: Target) -> None:
    """Raises Drifted where a decoder predicts too differently from its parent: ``divergence`` in nats per token."""
    if not divergence <= target.max_divergence:
        raise Drifted(
            f"the {target.precision} export is {divergence:.4f} nats per token away from its parent; at most "
            f"{target.max_divergence} is accepted. Nothing was registered: try a higher precision"
        )


def refuse_distant_embeddings(cosine: float, target: Target) -> None:
    """Raises Drifted where the least similar of an encoder's embeddings is too far from its parent's."""
    if not cosine >= target.min_cosine:
        raise Drifted(
            f"an embedding of the {target.precision} export has cosine {cosine:.4f} with its "
            f"parent's; at least {target.min_cosine} is asked. Nothing was registered"
        )


def refuse_other_predictions(divergence: float, target: Target) -> None:
    """Raises Drifted where a head predicts too differently from its parent's: ``divergence`` in nats per prediction."""
    if not divergence <= target.max_divergence:
        raise Drifted(
            f"the {target.precision} export is {divergence:.4f} nats per prediction away from its parent; at most "
            f"{target.max_divergence} is accepted. Nothing was registered: try a higher precision"
        )


def mean_divergence(
    reference_logits: Iterator[np.ndarray], logits: Iterator[np.ndarray], windows: np.ndarray
) -> float:
    """Mean KL in nats per token between two models of the same weights; logits float32 (window, vocab) of each window."""
    return compare(reference_logits, logits, windows).divergence


def carried_logits(
    parent_dir: Path, weights: Mapping[str, Tensor], windows: np.ndarray
) -> Iterator[np.ndarray]:
    """What the parent's own code predicts with other ``weights`` (by its names): float32 (window, vocab) of each window.

    Raises Drifted where a tensor of the parent has no counterpart of its shape there.
    """
    model: Any = load_causal_lm(parent_dir)
    own = model.state_dict()
    tied = {"lm_head.weight"} if getattr(model.config, "tie_word_embeddings", False) else set[str]()
    lost = sorted(
        name
        for name, one in own.items()
        if (name not in weights and name not in tied)
        or (name in weights and weights[name].shape != one.shape)
    )
    if lost:
        raise Drifted(
            f"of the parent's tensors {', '.join(lost[:3])} ({len(lost)} in all) are not in what was made"
        )
    model.load_state_dict({name: one.float() for name, one in weights.items() if name in own}, strict=False)
    return torch_logits(model, windows)

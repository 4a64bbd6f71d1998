"""AutoRound (arXiv 2309.05516): a short training of each layer decides which way each of its weights is rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STEPS = 200
"""Of each layer, each on :data:`BATCH` windows."""
BATCH = 4


def modifiers(scheme: Mapping[str, Any]) -> list[Any]:
    """llmcompressor's AutoRound; ``scheme`` as :func:`compress.quantize.rtn.modifiers` takes it."""
    from llmcompressor.modifiers.autoround import AutoRoundModifier

    return [AutoRoundModifier(**scheme, iters=STEPS, batch_size=BATCH, enable_torch_compile=False)]

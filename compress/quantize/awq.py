"""AWQ (arXiv 2306.00978): channels with large activations are scaled up before rounding to nearest, and divided back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def modifiers(scheme: Mapping[str, Any]) -> list[Any]:
    """llmcompressor's AWQ; ``scheme`` as :func:`compress.quantize.rtn.modifiers` takes it."""
    import torch
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        # llmcompressor 0.13 pins what it cached for a device, which torch refuses where there is none.
        IntermediatesCache.pin_memory = lambda *_: None
    return [AWQModifier(), QuantizationModifier(**scheme)]

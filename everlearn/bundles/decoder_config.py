"""A decoder's configuration as transformers reads it, where the file alone misleads: windows of layers, and tying."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BY_LAYER = frozenset({"gemma2", "gemma3_text", "qwen2", "qwen3", "smollm3"})
"""Model types whose layers have a window where ``layer_types`` say so."""
IN_ALL_LAYERS = frozenset({"mistral", "phi3"})
"""Model types whose layers all have the window, whatever ``layer_types`` say."""

TIED = frozenset({"ernie4_5", "gemma", "gemma2", "gemma3_text", "smollm3"})
"""Model types whose embedding is the output layer, too, where config.json says nothing: of those made into ONNX."""


def is_tied(config: Mapping[str, Any]) -> bool:
    """Whether the embedding is the output layer, too: by config.json, or else by the default of its model type."""
    said = config.get("tie_word_embeddings")
    return str(config.get("model_type")) in TIED if said is None else bool(said)


def windows_of(config: Mapping[str, Any]) -> list[int | None]:
    """The tokens that each layer sees, its own among them; None for all. ``config`` is complete, as transformers has it.

    Families of neither kind (Llama, Granite, Gemma 1) see everything, though a ``sliding_window`` be left over in their
    configuration.
    """
    kind, layers = str(config.get("model_type")), int(config["num_hidden_layers"])
    window = config.get("sliding_window")
    if kind in IN_ALL_LAYERS:
        return [window] * layers
    kinds = config.get("layer_types") if kind in BY_LAYER else None
    return [window if one == "sliding_attention" else None for one in kinds or ["full_attention"] * layers]

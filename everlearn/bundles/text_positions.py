"""How many tokens a model with learnt positions reads: the first position of some has the number behind the padding's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BEHIND_PADDING = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta", "xlm-roberta-xl"})
"""By ``model_type``: those whose first position has the number of the padding token, and one more."""


def first_position(model_type: str, pad_token_id: int | None) -> int:
    """The number of a text's first position."""
    return (pad_token_id or 0) + 1 if model_type in BEHIND_PADDING else 0


def context_of_encoder(config: Mapping[str, Any]) -> int:
    """Tokens of the longest text that an encoder of this config.json reads, CLIP's of texts too."""
    positions = int((config.get("text_config") or config)["max_position_embeddings"])
    return positions - first_position(config.get("model_type", ""), config.get("pad_token_id"))

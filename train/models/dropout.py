"""The recipe's key ``dropout``, as each family's config.json calls it."""

from __future__ import annotations

from typing import Any

NAMES = (
    "dropout",
    "attention_dropout",
    "hidden_dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout_rate",
    "embd_pdrop",
    "resid_pdrop",
    "attn_pdrop",
    "embedding_dropout",
    "mlp_dropout",
)


def dropout_settings(config: Any, dropout: float | None) -> dict[str, float]:
    """Settings of ``config`` that make it so everywhere; none for None, which leaves the family's own."""
    return {} if dropout is None else {name: float(dropout) for name in NAMES if hasattr(config, name)}

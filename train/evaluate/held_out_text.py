"""The held-out text that models are measured on, and how a text becomes windows of tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np

WINDOW = 512
"""Tokens a model sees at once: its logits take 512 x 49152 x 4 bytes = 100 MB for a vocabulary of 49k."""

HELD_OUT_TOKENS = 3072
"""Six windows: about ten seconds of a 135M model on two cores."""


@dataclass(frozen=True)
class HeldOutText:
    """A text no recipe of everlearn trains on."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def held_out_text() -> HeldOutText:
    """The shipped text: prose of the Jargon File, in the public domain (``train/evaluate/held_out/SOURCE.md``)."""
    file = resources.files("train.evaluate") / "held_out" / "jargon.txt"
    return HeldOutText("jargon", file.read_text(encoding="utf-8"))


def token_windows(
    tokenizer_file: Path, text: str, limit: int = HELD_OUT_TOKENS, window: int = WINDOW
) -> np.ndarray:
    """The first ``limit`` tokens of ``text`` as rows of equal length; what does not fill a row is left out.

    Returns ids: int64 (windows, window); shorter rows where the model beside the tokenizer reads no more at once.
    Raises InvalidInput where the text is shorter than one window.
    """
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if (config := tokenizer_file.with_name("config.json")).exists():
        window = min(window, tokens_at_once(json.loads(config.read_bytes())) or window)
    ids = tokenizer.encode(text, add_special_tokens=False).ids[:limit]
    rows = len(ids) // window
    if rows == 0:
        raise InvalidInput(f"the text has {len(ids)} tokens, and needs at least {window}")
    return np.array(ids[: rows * window], dtype=np.int64).reshape(rows, window)


def tokens_at_once(config: Mapping[str, Any]) -> int | None:
    """The longest text that a model of this config.json reads by one set of rotary positions; None where it says nothing.

    ``longrope`` (``su`` in older files, and what transformers makes of Phi 3's ``yarn``) turns every token otherwise, those already read too, once a text is longer than
    the model was first trained on (arXiv 2402.13753).
    """
    most = config.get("max_position_embeddings")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for one in [each for each in rope.values() if isinstance(each, Mapping)] or [rope]:
        kind = one.get("rope_type") or one.get("type")
        if kind in ("longrope", "su") or (kind == "yarn" and config.get("model_type") == "phi3"):
            first = one.get("original_max_position_embeddings") or config.get(
                "original_max_position_embeddings"
            )
            most = min(first or most, most or first)
    return most

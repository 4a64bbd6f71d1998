"""A sentence encoder as sentence-transformers lays it out: a body, and how its states become one embedding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from everlearn.errors import Unsupported

Pooling = Literal["mean", "cls"]
POOLINGS: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
MODULES = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))


def pooling_of(model_dir: Path | None) -> Pooling:
    """What 1_Pooling says; the mean where a model has none. Raises Unsupported for another."""
    if model_dir is None or not (file := model_dir / "1_Pooling" / "config.json").is_file():
        return "mean"
    modes: dict[str, Any] = json.loads(file.read_bytes())
    chosen = {name for name, on in modes.items() if name.startswith("pooling_mode_") and on is True}
    if "pooling_mode" in modes:
        chosen |= {
            f"pooling_mode_{modes['pooling_mode']}",
            f"pooling_mode_{modes['pooling_mode']}_tokens",
        } & set(POOLINGS)
    found = [POOLINGS[name] for name in chosen if name in POOLINGS]
    if len(found) != 1:
        raise Unsupported(
            f"{file} says {', '.join(sorted(chosen)) or 'nothing'}: mean or cls is taken", param="base"
        )
    return found[0]


def hidden_size(model_dir: Path) -> int:
    """Numbers of an embedding."""
    return int(json.loads((model_dir / "config.json").read_bytes())["hidden_size"])


def write_sentence_files(
    target: Path, base: Path | None, pooling: Pooling, dim: int, max_tokens: int
) -> None:
    """What sentence-transformers, and everlearn import, read beside the weights."""
    kept = base and base / "sentence_bert_config.json"
    before = json.loads(kept.read_bytes()) if kept and kept.is_file() else {}
    longest = max(max_tokens, int(before.get("max_seq_length") or 0))
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(MODULES)
    ]
    modes = {name: each == pooling for name, each in POOLINGS.items()}
    (target / "1_Pooling").mkdir()
    for name, said in (
        ("modules.json", modules),
        ("sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False}),
        ("1_Pooling/config.json", {"word_embedding_dimension": dim, **modes}),
    ):
        (target / name).write_text(json.dumps(said, indent=2))

"""Read a parent's directory, and keep what goes into its children: config.json, tokenizer, all beside the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

PARENTS_OWN = ("bundle.json", "model.safetensors.index.json")
"""What describes the parent's weights, and no others."""


def config_of(model_dir: Path) -> dict[str, Any]:
    """What its config.json says."""
    return json.loads((model_dir / "config.json").read_bytes())


def keep_tokenizer(parent_dir: Path, staging: Path) -> None:
    """The parent's own tokenizer files over the ones the builder rewrote: same tokens, fewer bytes."""
    for pattern in ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.*"):
        for file in parent_dir.glob(pattern):
            shutil.copyfile(file, staging / file.name)


def keep_beside_weights(parent_dir: Path, made: Path) -> None:
    """All that a Hugging Face directory has beside its weights, where ``made`` has no such file of its own."""
    for file in sorted(parent_dir.rglob("*")):
        target = made / file.relative_to(parent_dir)
        of_the_weights = file.suffix == ".safetensors" or file.name in PARENTS_OWN
        if file.is_file() and not of_the_weights and not target.exists():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)

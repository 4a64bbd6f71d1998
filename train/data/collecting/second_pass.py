"""A second pass over what was collected, by a model of one's own: what names the model, and the pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everlearn.bundles.bundle import MANIFEST, file_entry
from everlearn.errors import InvalidInput
from train.data.collecting.collect import Collection


def model_sha256(folder: Path, param: str) -> str:
    """Names the model: its bundle's digest, or that of its configuration, tokenizer and weights. Raises InvalidInput."""
    if (folder / MANIFEST).is_file():
        return json.loads((folder / MANIFEST).read_bytes())["digest"]
    files = [folder / "config.json", folder / "tokenizer.json", *sorted(folder.glob("*.safetensors"))]
    if missing := [file.name for file in files[:2] if not file.is_file()]:
        raise InvalidInput(
            f"{folder} is no folder of a model (it has no {missing[0]}), and no model here has that name",
            param=param,
        )
    return hashlib.sha256(" ".join(file_entry(file).sha256 for file in files).encode()).hexdigest()


def next_name(collection: Collection, digest: str, options: Mapping[str, Any]) -> str:
    """Of what a model (``digest``) makes of ``collection``: a digest of all that decides it."""
    decides = [collection.directory.name, digest, options]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:32]

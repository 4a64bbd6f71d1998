"""Read what a run's files held from run folders of earlier versions, whose run.json did not say it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any


def made_of(run_dir: Path, before: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``contents`` and ``base`` of a run, as run.json would hold them today; ``before`` is what it holds.

    The digests are those that the newest checkpoint or the outcome is bound to, and of files those in the data's
    card. None where neither was written, or where the card does not tell held-out files from the others.
    """
    identity, recipe = _identity(run_dir), before["recipe"]
    card = run_dir / "data" / "card.json"
    if identity is None or recipe["data"]["held"] or (recipe["data"]["train"] and not card.is_file()):
        return None
    contents: dict[str, list[list[str]]] = {}
    if recipe["data"]["train"]:
        sources = json.loads(card.read_bytes())["sources"]
        contents = {"data.train": [[source["name"], source["sha256"]] for source in sources], "data.held": []}
    stores = {
        "data.store": (recipe["data"]["store"], identity["train_data"]),
        "data.held_store": (recipe["data"]["held_store"], identity["held_data"]),
        "keep.store": ((recipe["keep"] or {}).get("store"), identity["kept_data"]),
    }
    contents |= {key: [[PurePath(path).name, sha256]] for key, (path, sha256) in stores.items() if path}
    base = {"ref": recipe["base"], "digest": identity["base"]} if identity["base"] else None
    return {"contents": contents, "base": base}


def _identity(run_dir: Path) -> dict[str, Any] | None:
    """What the result of the run depends on beside its recipe."""
    saved = sorted(run_dir.glob("checkpoints/step-*/state.json"), reverse=True)
    for path in [run_dir / "outcome.json", *saved]:
        try:
            return json.loads(path.read_bytes())["identity"]
        except (OSError, ValueError, KeyError):
            continue
    return None

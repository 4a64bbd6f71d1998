"""Everything a run needs before a model is loaded: a tokenizer, where it starts from none, and its data. A child."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from everlearn.child import answer
from everlearn.progress import Progress
from train.data.card import DataOptions
from train.data.prepare import prepare
from train.data.read import SUFFIXES
from train.data.tokenizer import train_tokenizer
from train.recipe import TrainRecipe, validate_recipe


def prepare_run(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Fills ``tokenizer/`` and ``data/`` of the run folder, each once. Raises InvalidInput naming file and line."""
    os.nice(request["nice"])
    run_dir = Path(request["run_dir"])
    run = json.loads((run_dir / "run.json").read_bytes())
    recipe, tokenizer_dir = validate_recipe(TrainRecipe, run["recipe"]), Path(run["tokenizer_dir"])
    data = recipe.data
    if recipe.architecture and not tokenizer_dir.exists():
        progress("learning a tokenizer", None)
        train_tokenizer(list(files(data.train)), recipe.architecture.vocab, tokenizer_dir, kind=data.kind)
    if data.train:
        said = data.model_dump(include=set(DataOptions.model_fields))
        options = DataOptions(**{**said, "max_tokens": data.max_tokens or recipe.sequence_tokens})
        prepare(data.train, tokenizer_dir, run_dir / "data", options, progress, held=data.held)
    return {}


def files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files themselves, and those of folders."""
    for path in paths:
        if path.is_dir():
            yield from sorted(one for one in path.rglob("*") if set(one.suffixes) & set(SUFFIXES))
        else:
            yield path


if __name__ == "__main__":
    answer(prepare_run)

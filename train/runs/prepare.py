"""Everything a run needs before a model is loaded: a tokenizer, where it starts from none, and its data. A child."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everlearn.processes.child import answer
from everlearn.progress import Progress
from train.data.prepare import prepare
from train.data.train_tokenizer import train_tokenizer
from train.models.image_text import image_size
from train.recipe import TrainRecipe, validate_recipe


def prepare_run(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Fills ``tokenizer/`` and ``data/`` of the run folder, each once. Raises InvalidInput naming file and line."""
    os.nice(request["nice"])
    run_dir = Path(request["run_dir"])
    run = json.loads((run_dir / "run.json").read_bytes())
    recipe, tokenizer_dir = validate_recipe(TrainRecipe, run["recipe"]), Path(run["tokenizer_dir"])
    data = recipe.data
    options = recipe.data_options
    if options.kind == "contrastive" and not options.image_size and run["model_dir"]:
        options = options.model_copy(update={"image_size": image_size(Path(run["model_dir"]))})
    if recipe.architecture and not tokenizer_dir.exists():
        progress("learning a tokenizer", None)
        size, kind = recipe.architecture.vocab, recipe.architecture.tokenizer_options
        train_tokenizer(data.files, size, tokenizer_dir, options, kind)
    if data.files:
        prepare(
            data.files,
            tokenizer_dir,
            run_dir / "data",
            options,
            progress,
            held=data.held,
            processes=recipe.threads,
        )
    return {}


if __name__ == "__main__":
    answer(prepare_run)

"""Preparing data in a process of its own, with limits: what a file of users' does there, it does nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from everlearn.processes.child import Limits, answer, run_child
from everlearn.progress import Progress
from train.data.card import DataCard
from train.data.options import DataOptions
from train.data.prepare import Source, prepare


def prepare_limited(
    sources: Sequence[Source],
    tokenizer_dir: Path,
    out: Path,
    options: DataOptions,
    progress: Progress,
    *,
    max_unpacked_bytes: int,
    memory_bytes: int,
    wall_s: float,
) -> DataCard:
    """As ``train.data.prepare.prepare``; a file that takes more than the limits ends in InvalidInput, too."""
    what = " and ".join(source.name for source in sources)
    request = {
        "sources": [{"path": str(each.path), "name": each.name, "held": each.held} for each in sources],
        "tokenizer_dir": str(tokenizer_dir),
        "out": str(out),
        "options": options.model_dump(mode="json"),
        "max_unpacked_bytes": max_unpacked_bytes,
    }
    limits = Limits(what, memory_bytes, wall_s, param="training_file")
    return DataCard.model_validate(run_child("train.data.prepare_child", request, progress, limits)["card"])


def work(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    sources = [Source(Path(each["path"]), each["name"], each["held"]) for each in request["sources"]]
    card = prepare(
        sources,
        Path(request["tokenizer_dir"]),
        Path(request["out"]),
        DataOptions(**request["options"]),
        progress,
        max_unpacked_bytes=request["max_unpacked_bytes"],
        processes=1,  # the limits are for all of the work
    )
    return {"card": card.model_dump(mode="json")}


if __name__ == "__main__":
    answer(work)

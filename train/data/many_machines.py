"""Data preparation on many machines, as two stages of datatrove's pipelines (Slurm, Ray, or processes of one machine).

In a datatrove pipeline a step is anything that is called with (data, rank, world_size). :class:`Collect` reads and cleans
its share of the files and parts of files, as ``train.data.collecting`` does, into the folder that ``prepare`` works in;
:class:`Finish` calls ``prepare``, which finds them there, so that the result is the same bytes. All machines see the
files, the folder and the tokenizer under the same paths. Nothing of datatrove is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from everlearn.bundles.bundle import file_entry
from everlearn.bundles.durable import write_file
from everlearn.progress import silent
from train.data.cleaning.cleaner import Cleaner
from train.data.collecting.collect import collect, images_sha256, limits_of
from train.data.collecting.collect_child import Asked
from train.data.collecting.shards import parts_of
from train.data.options import DataOptions
from train.data.prepare import prepare, work_folder
from train.data.reading.part import Part
from train.data.reading.sources import Source, Sources, list_sources
from train.recipe import read_recipe

PLAN = "plan.json"


@dataclass(frozen=True)
class Preparation:
    """What ``train.data.prepare.prepare`` is asked for, with the same names."""

    sources: Sources
    tokenizer_dir: Path
    out: Path
    options: DataOptions = field(default_factory=DataOptions)
    held: Sequence[Path | str] = ()

    @classmethod
    def of_recipe(cls, recipe: Path, tokenizer_dir: Path, out: Path) -> Preparation:
        """The data of a recipe of ``everlearn train``. Raises ConfigError with file and line."""
        said = read_recipe(recipe)
        return cls(said.data.files, tokenizer_dir, out, said.data_options, said.data.held)


@dataclass(frozen=True)
class Collect:
    """A stage of as many tasks as there are machines, or cores of them. Errors as ``prepare``; a task that was killed goes on
    where it stood when it is run again."""

    preparation: Preparation

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        asked = self.preparation
        work = work_folder(asked.out)
        if asked.out.exists():
            return
        work.mkdir(parents=True, exist_ok=True)
        files = list_sources(asked.sources, asked.held)
        cleaner = Cleaner(asked.options, [file for file in files if file.held])
        pieces = [(file, part) for file in _plan(asked, files, work) for part, _ in file.pieces]
        for file, part in pieces[rank::world_size]:
            collect(file.source, file.sha256, asked.options, work, cleaner, images=file.images, part=part)


@dataclass(frozen=True)
class Finish:
    """The stage after it, of one task: duplicates, the split and the tokens."""

    preparation: Preparation

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        asked = self.preparation
        prepare(
            asked.sources, asked.tokenizer_dir, asked.out, asked.options, silent, held=asked.held, processes=1
        )


def _plan(asked: Preparation, files: Sequence[Source], work: Path) -> list[Asked]:
    """What the files hold and how they are cut: found out by the first task for all, anew where a file was changed."""
    stats = [file.path.stat() for file in files]
    of: list[Any] = [
        [file.name, stat.st_size, stat.st_mtime_ns] for file, stat in zip(files, stats, strict=True)
    ]
    of.append(asked.options.model_dump(mode="json"))
    with FileLock(work / f"{PLAN}.lock"):
        if not (work / PLAN).is_file() or json.loads((work / PLAN).read_bytes())["of"] != of:
            found = [_looked_at(file, asked.options) for file in files]
            write_file(work / PLAN, json.dumps({"of": of, "files": found}).encode())
        found = json.loads((work / PLAN).read_bytes())["files"]
    return [
        Asked(file, sha256, images, [Part(*part) for part in parts])
        for file, (sha256, images, parts) in zip(files, found, strict=True)
    ]


def _looked_at(file: Source, options: DataOptions) -> tuple[str, str | None, list[tuple[int, ...]]]:
    """The sha256 of the file, and of its pictures, and its parts."""
    parts = [astuple(part) for part in parts_of(file, options, limits_of(file, options, None))]
    return file_entry(file.path).sha256, images_sha256(file, options), parts

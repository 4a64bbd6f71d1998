"""A file's collection from those of its parts, byte for byte as if it had been read whole."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from everlearn.bundles.durable import move_directory, sync_tree
from train.data.cleaning.cleaner import Cleaner
from train.data.cleaning.samples import Samples
from train.data.collecting.collect import FILES, MAX_NAMES, Collection, collect, collection_name
from train.data.options import DataOptions
from train.data.reading.part import Part
from train.data.reading.sources import Source

BLOCK_BYTES = 2**22
SUMMED = ("dropped", "forms", "ignored", "languages", "masked")


def collect_parts(
    source: Source,
    file_sha256: str,
    options: DataOptions,
    work: Path,
    cleaner: Cleaner,
    parts: Sequence[Part],
    told: Callable[[int], None],
) -> None:
    """Collects the file's ``parts``, those that are not there yet, and merges them; ``told`` hears how many bytes are
    done. Errors as ``collect``. Where only the whole file tells, it is not there afterwards."""
    made: list[Collection] = []
    for part in parts:
        made.append(collect(source, file_sha256, options, work, cleaner, part=part))
        told(part.end)
    if any(each.read for each in made):
        merge(made, work / collection_name(source, file_sha256, options, cleaner))
    for each in made:
        shutil.rmtree(each.directory)


def merge(parts: Sequence[Collection], directory: Path) -> None:
    """Fills ``directory``, which appears when it is whole. Not where there are so many keys that nothing is made of that
    which of them are counted by name depends on the order in which they are found."""
    counts = _summed([part.counts for part in parts])
    if len(counts["ignored"]) > MAX_NAMES:
        return
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name in FILES:
        with (partial / name).open("wb") as out:
            for part in parts:
                with (part.directory / name).open("rb") as content:
                    shutil.copyfileobj(content, out, BLOCK_BYTES)
    with (partial / "ends.bin").open("wb") as out:
        _write_ends(parts, out)
    (partial / "counts.json").write_text(json.dumps(counts, sort_keys=True))
    sync_tree(partial)
    move_directory(partial, directory)


def _write_ends(parts: Sequence[Collection], out: IO[bytes]) -> None:
    """Each part's places follow those of the part before."""
    before = np.zeros(2, dtype=np.int64)
    for part in parts:
        ends = part.ends + before
        out.write(ends.tobytes())
        before = ends[-1] if len(ends) else before


def _summed(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    total = dict(each[0])
    for key in SUMMED:
        total[key] = dict(sum((Counter(counts[key]) for counts in each), Counter[str]()))
    total["read"] = sum(counts["read"] for counts in each)
    total["changed"] = {
        name: dict(sum((Counter(counts["changed"].get(name, {})) for counts in each), Counter[str]()))
        for name in sorted({name for counts in each for name in counts["changed"]})
    }
    samples = Samples()
    for counts in each:
        samples.add(counts["samples"])
    total["samples"] = samples.all()
    return total

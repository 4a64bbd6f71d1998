"""Take out of all texts the lines that many of them have: banners, menus, footers.

Two passes over the collected documents, in flat memory: the first writes a hash of each line to disk and counts them in
a table of fixed size, from which those that may be frequent are counted exactly; the second takes them out. Equal
documents count once. Headings, code and short lines stay, and so does a text most of which is such lines: which of
them to keep is for the search of near-duplicates to say.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn.progress import Progress
from train.data.cleaning.clean import CODE_LINE, weight, why_dropped
from train.data.cleaning.encoding import FENCE
from train.data.cleaning.options import Boilerplate
from train.data.cleaning.samples import Samples
from train.data.collecting.collect import Collection, write_collection
from train.data.examples import RawExample, Text
from train.data.options import DataOptions

MAX_PART = 0.5
"""A text of which more would go is left as it is."""
TABLE_LOG2 = 24
"""2^24 counters of four bytes."""
BLOCK = 2**20
CHANGE = "boilerplate_lines"


def without_boilerplate(
    collected: Sequence[Collection],
    data: DataOptions,
    options: Boilerplate,
    work: Path,
    progress: Progress,
) -> list[Collection]:
    """The collections anew where lines were taken out; each in a folder of ``work`` that appears when it is whole."""
    progress("looking for lines that many documents have", 0.6)
    frequent = _frequent(_write_lines(collected, options, work / "lines.bin"), options.max_documents)
    if not len(frequent):
        return list(collected)
    digest = hashlib.sha256(frequent.tobytes()).hexdigest()
    hashes = frozenset(frequent.tolist())
    return [_without(each, hashes, digest, data, options) for each in collected]


def _write_lines(collected: Sequence[Collection], options: Boilerplate, file: Path) -> Path:
    """The hashes of each document's lines, each once a document, uint64."""
    seen: set[bytes] = set()
    with file.open("wb") as out:
        for collection in collected:
            for document in collection.documents():
                key = bytes.fromhex(document.sha256[:32])
                if isinstance(document.raw, Text) and key not in seen:
                    lines = {_hash(line) for line in _eligible(document.raw.text, options) if line}
                    out.write(np.fromiter(sorted(lines), dtype=np.uint64, count=len(lines)).tobytes())
                seen.add(key)
    return file


def _frequent(file: Path, most: int) -> NDArray[np.uint64]:
    """Those that more than ``most`` documents have, ascending."""
    table = np.zeros(2**TABLE_LOG2, dtype=np.uint32)
    shift = np.uint64(64 - TABLE_LOG2)
    for block in _blocks(file):
        np.add.at(table, block >> shift, 1)
    counts: Counter[int] = Counter()
    for block in _blocks(file):
        values, times = np.unique(block[table[block >> shift] > most], return_counts=True)
        for value, count in zip(values.tolist(), times.tolist(), strict=True):
            counts[value] += count
    return np.array(sorted(value for value, count in counts.items() if count > most), dtype=np.uint64)


def _blocks(file: Path) -> Iterator[NDArray[np.uint64]]:
    with file.open("rb") as stream:
        while block := stream.read(8 * BLOCK):
            yield np.frombuffer(block, dtype=np.uint64)


def _without(
    collection: Collection, frequent: frozenset[int], digest: str, data: DataOptions, options: Boilerplate
) -> Collection:
    said = json.dumps([collection.directory.name, digest, options.model_dump(), data.min_chars])
    directory = collection.directory.with_name(hashlib.sha256(said.encode()).hexdigest()[:32])
    counts = json.loads(json.dumps(collection.counts))
    samples = Samples()
    samples.add(collection.samples)

    def told() -> dict[str, Any]:
        return {**counts, "samples": samples.all()}

    def examples() -> Iterator[RawExample]:
        for document in collection.documents():
            raw = document.raw
            text = _lines_removed(raw.text, frequent, options) if isinstance(raw, Text) else None
            if isinstance(raw, Text) and text is not None and text != raw.text:
                change = counts["changed"].setdefault(CHANGE, {"examples": 0, "characters": 0})
                change["examples"] += 1
                change["characters"] += len(raw.text) - len(text)
                raw = replace(raw, text=text)
                if rule := why_dropped(raw, data):
                    counts["dropped"][rule] = counts["dropped"].get(rule, 0) + 1
                    samples.of(rule, raw)
                    continue
            yield raw

    return write_collection(directory, examples(), told, data)


def _lines_removed(text: str, frequent: frozenset[int], options: Boilerplate) -> str:
    lines = text.split("\n")
    kept = [
        line
        for line, stripped in zip(lines, _eligible(text, options), strict=True)
        if not (stripped and _hash(stripped) in frequent)
    ]
    made = "\n".join(kept)
    return made if len(made.strip()) >= (1 - MAX_PART) * len(text.strip()) else text


def _eligible(text: str, options: Boilerplate) -> Iterator[str]:
    """Each line without what surrounds it; empty for one that stays."""
    fenced = False
    for line in text.split("\n"):
        if FENCE.match(line):
            fenced = not fenced
        stripped = line.strip()
        is_short = len(stripped) < options.min_chars and (
            stripped.isascii() or weight(stripped) < options.min_chars
        )
        stays = fenced or is_short or stripped.startswith("#") or CODE_LINE.fullmatch(line)
        yield "" if stays else stripped


def _hash(line: str) -> int:
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "little")

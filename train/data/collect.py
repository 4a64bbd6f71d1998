"""One file's cleaned documents on disk, with what finding their duplicates needs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from everlearn.durable import move_directory, sync_tree
from train.data.card import DataOptions
from train.data.clean import cleaned, said, why_dropped
from train.data.dedup import PERMUTATIONS, signature
from train.data.examples import RawExample, parse_record
from train.data.read import Limits, read_examples

CLEANING = {
    "kind",
    "min_chars",
    "max_chars",
    "max_repeated_lines",
    "max_repeated_chars",
    "near_duplicates",
    "max_line_bytes",
}
"""The options that decide what a collection holds."""


@dataclass(frozen=True)
class Collected:
    """A document that cleaning kept."""

    raw: RawExample
    sha256: str


class Collection:
    """Documents of one file; texts stay on disk.

    hashes: uint8 (documents, 32). signatures: uint32 (documents, PERMUTATIONS), mapped; those of documents that
    are not ``comparable``, bool (documents,), are zero.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / "documents.jsonl"
        counts = json.loads((directory / "counts.json").read_text())
        self.read: int = counts["read"]
        self.dropped: dict[str, int] = counts["dropped"]
        self.hashes: NDArray[np.uint8] = np.fromfile(directory / "hashes.bin", dtype=np.uint8).reshape(-1, 32)
        self.comparable: NDArray[np.bool_] = np.fromfile(directory / "comparable.bin", dtype=np.bool_)
        shape = (len(self.hashes), PERMUTATIONS)
        self.signatures: NDArray[np.uint32] = (
            np.memmap(directory / "signatures.bin", dtype=np.uint32, mode="r", shape=shape)
            if len(self.hashes)
            else np.zeros(shape, dtype=np.uint32)
        )

    def __len__(self) -> int:
        return len(self.hashes)

    def documents(self) -> Iterator[Collected]:
        """In the file's order."""
        with self._file.open(encoding="utf-8") as lines:
            for line, digest in zip(lines, self.hashes, strict=True):
                source, record = json.loads(line)
                yield Collected(parse_record(record, source), digest.tobytes().hex())


def collect(
    file: Path,
    name: str,
    file_sha256: str,
    options: DataOptions,
    work: Path,
    max_unpacked_bytes: int | None = None,
) -> Collection:
    """Reads and cleans a file into a folder of ``work`` that appears when it is whole. Errors as ``read_examples``."""
    decides = [name, file_sha256, options.model_dump(include=CLEANING)]
    directory = work / hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]
    if not directory.exists():
        partial = work / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _fill(partial, file, name, options, max_unpacked_bytes)
        sync_tree(partial)
        move_directory(partial, directory)
    return Collection(directory)


def _fill(
    directory: Path, file: Path, name: str, options: DataOptions, max_unpacked_bytes: int | None
) -> None:
    read = 0
    dropped: Counter[str] = Counter()
    limits = Limits(max_line_bytes=options.max_line_bytes, max_unpacked_bytes=max_unpacked_bytes)
    with (
        (directory / "documents.jsonl").open("w", encoding="utf-8") as documents,
        (directory / "hashes.bin").open("wb") as hashes,
        (directory / "comparable.bin").open("wb") as comparable,
        (directory / "signatures.bin").open("wb") as signatures,
    ):
        for raw in read_examples(file, kind=options.kind, limits=limits, name=name):
            read += 1
            example = cleaned(raw)
            if reason := why_dropped(example, options):
                dropped[reason] += 1
                continue
            documents.write(json.dumps([example.source, example.record], ensure_ascii=False) + "\n")
            hashes.write(bytes.fromhex(example.sha256))
            known = signature(said(example)) if options.near_duplicates is not None else None
            comparable.write(np.bool_(known is not None).tobytes())
            signatures.write((known if known is not None else np.zeros(PERMUTATIONS, np.uint32)).tobytes())
    counts = {"read": read, "dropped": dict(sorted(dropped.items()))}
    (directory / "counts.json").write_text(json.dumps(counts))

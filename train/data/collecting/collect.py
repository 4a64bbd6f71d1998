"""The cleaned documents of one file, or of a part of it, on disk, with what finding their duplicates needs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn.bundles.durable import move_directory, sync_tree
from everlearn.errors import Conflict
from everlearn.images import pixels
from train.data.cleaning.cleaner import Cleaner, Outcome
from train.data.cleaning.learned_parts import Learnt, learnt
from train.data.cleaning.samples import Sample, Samples
from train.data.examples import RawExample, parse_record
from train.data.labelled.example import Labelled, LabelledKind
from train.data.options import DataOptions
from train.data.reading.forms import UnknownForm
from train.data.reading.part import Part
from train.data.reading.read import Limits, read_examples
from train.data.reading.sources import Source
from train.data.store import IMAGES

CLEANING = {
    "kind",
    "min_chars",
    "max_chars",
    "max_repeated_lines",
    "max_repeated_chars",
    "near_duplicates",
    "max_line_bytes",
    "normalize",
    "strip",
    "encoding",
    "languages",
    "quality",
    "harmful",
    "personal",
    "decontaminate",
    "image_size",
}
"""The options that decide what a collection holds."""
VERSION = 3
"""Of how data is prepared: raised whenever the same input becomes other bytes."""
FILES = ("documents.jsonl", "hashes.bin", "shingles.bin", "context.bin", IMAGES)
"""What a collection has beside its counts and ``ends.bin``, which says where each document's shingles and context end."""
MAX_NAMES = 100
"""So many keys that nothing was made of are counted by name."""


@dataclass(frozen=True)
class Collected:
    """A document that cleaning kept; its picture as pixels, uint8 (size, size, 3), where it has one."""

    raw: RawExample
    sha256: str


class Collection:
    """Documents of one file; texts stay on disk, and what is learnt of them as shingles, see ``train.data.cleaning.learned_parts``.

    hashes: uint8 (documents, 32).
    """

    def __init__(
        self, directory: Path, kind: LabelledKind | None = None, image_size: int | None = None
    ) -> None:
        self.directory, self._kind = directory, kind
        self.counts: dict[str, Any] = json.loads((directory / "counts.json").read_text())
        counts = self.counts
        self.read: int = counts["read"]
        self.is_other: bool = counts["is_other"]
        self.dropped: dict[str, int] = counts["dropped"]
        self.forms: dict[str, int] = counts["forms"]
        self.ignored: dict[str, int] = counts["ignored"]
        self.changed: dict[str, dict[str, int]] = counts["changed"]
        self.masked: dict[str, int] = counts.get("masked", {})
        self.languages: dict[str, int] = counts.get("languages", {})
        self.marked: dict[str, int] = counts.get("marked", {})
        self.samples: list[Sample] = counts.get("samples", [])
        self.hashes: NDArray[np.uint8] = np.fromfile(directory / "hashes.bin", dtype=np.uint8).reshape(-1, 32)
        self._images: NDArray[np.uint8] | None = None
        if image_size and len(self.hashes):
            images = np.memmap(directory / IMAGES, dtype=np.uint8, mode="r")
            self._images = images.reshape(len(self.hashes), -1)
        self.ends = np.fromfile(directory / "ends.bin", dtype=np.int64).reshape(-1, 2)
        self._shingles, self._context = (
            _mapped(directory / "shingles.bin"),
            _mapped(directory / "context.bin"),
        )

    def __len__(self) -> int:
        return len(self.hashes)

    def documents(self) -> Iterator[Collected]:
        """In the file's order."""
        with (self.directory / "documents.jsonl").open(encoding="utf-8") as lines:
            for number, (line, digest) in enumerate(zip(lines, self.hashes, strict=True)):
                source, record, *marks = json.loads(line)
                kind = self._kind
                raw = Labelled(kind, record, source) if kind else parse_record(record, source)
                if marks:
                    raw = replace(raw, marks=marks[0])
                if self._images is not None and isinstance(raw, Labelled):
                    raw = replace(raw, image=self._images[number].tobytes())
                yield Collected(raw, digest.tobytes().hex())

    @property
    def shingles(self) -> int:
        return len(self._shingles)

    def learnt(self, document: int) -> Learnt:
        """Without shingles where near duplicates are not looked for."""
        begin, end = self.ends[document - 1] if document else (0, 0), self.ends[document]
        return Learnt(self._shingles[begin[0] : end[0]], self._context[begin[1] : end[1]])


def _mapped(file: Path) -> NDArray[np.uint32]:
    return np.memmap(file, dtype=np.uint32, mode="r") if file.stat().st_size else np.zeros(0, np.uint32)


def collect(
    source: Source,
    file_sha256: str,
    options: DataOptions,
    work: Path,
    cleaner: Cleaner,
    max_unpacked_bytes: int | None = None,
    images: str | None = None,
    part: Part | None = None,
) -> Collection:
    """Reads and cleans a file, or a ``part`` of it, into a folder of ``work`` that appears when it is whole. ``images``: the
    digest of the pictures that it names. Errors as ``read_examples``, and Conflict where a picture is changed meanwhile."""
    directory = work / collection_name(source, file_sha256, options, cleaner, images, part)
    counts, samples = _Counts(), Samples()

    def told() -> dict[str, Any]:
        return {**vars(counts), "samples": samples.all()}

    limits = limits_of(source, options, max_unpacked_bytes, part)
    examples = _cleaned(source, options, limits, cleaner, counts, samples, images, part)
    return write_collection(directory, examples, told, options)


def collection_name(
    source: Source,
    file_sha256: str,
    options: DataOptions,
    cleaner: Cleaner,
    images: str | None = None,
    part: Part | None = None,
) -> str:
    """A digest of all that decides what a collection holds."""
    chosen = {key: value for key, value in options.deciding().items() if key in CLEANING}
    if options.harm_classifier:
        chosen["harmful"].pop("classifier")  # it looks at what is collected
    if options.name_finder:
        chosen["personal"].pop("names")
    decides: list[Any] = [VERSION, source.name, source.found, file_sha256, chosen]
    if options.translation:
        decides.append(options.translation)
    if options.cleans:
        decides += [source.held, cleaner.files_sha256]
    if images:
        decides.append(images)
    if part:
        decides.append([part.begin, part.end, part.line])
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


def write_collection(
    directory: Path,
    examples: Iterator[RawExample],
    told: Callable[[], dict[str, Any]],
    options: DataOptions,
) -> Collection:
    """``examples`` as a folder that appears when it is whole; as it is where it is there. ``told``: the counts, asked
    for after the last example."""
    if not directory.exists():
        partial = directory.with_name(f"{directory.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _write_documents(partial, examples, options)
        (partial / "counts.json").write_text(json.dumps(told(), sort_keys=True))
        sync_tree(partial)
        move_directory(partial, directory)
    return Collection(directory, options.labelled, options.image_side)


def images_sha256(source: Source, options: DataOptions, max_unpacked_bytes: int | None = None) -> str | None:
    """Of the pictures of a file's examples, in order: it changes with any byte of any of them. None of other data.
    Errors as ``read_examples``."""
    if not options.image_side:
        return None
    digest = hashlib.sha256()
    for raw in _read(source, options, limits_of(source, options, max_unpacked_bytes), _Counts()):
        if isinstance(raw, Labelled):
            digest.update(bytes.fromhex(raw.record["image"]))
    return digest.hexdigest()


def limits_of(
    source: Source, options: DataOptions, max_unpacked_bytes: int | None, part: Part | None = None
) -> Limits:
    """Of a file that is found in a folder, or of a part, none need be there."""
    return Limits(
        max_line_bytes=options.max_line_bytes,
        max_unpacked_bytes=max_unpacked_bytes,
        min_examples=0 if source.found or part else 1,
    )


@dataclass
class _Counts:
    """What is told of a file."""

    read: int = 0
    is_other: bool = False
    dropped: Counter[str] = field(default_factory=Counter[str])
    forms: Counter[str] = field(default_factory=Counter[str])
    ignored: Counter[str] = field(default_factory=Counter[str])
    changed: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    masked: Counter[str] = field(default_factory=Counter[str])
    languages: Counter[str] = field(default_factory=Counter[str])

    def add(self, raw: RawExample, done: Outcome) -> None:
        self.read += 1
        self.forms[raw.form] += 1
        for key in raw.ignored:
            self.ignored[key if key in self.ignored or len(self.ignored) < MAX_NAMES else "others"] += 1
        for name, characters in (+done.changes).items():
            change = self.changed.setdefault(name, {"examples": 0, "characters": 0})
            change["examples"] += 1
            change["characters"] += characters
        self.masked.update(done.masked)
        if done.language:
            self.languages[done.language] += 1
        if done.rule:
            self.dropped[done.rule] += 1


def _read(
    source: Source, options: DataOptions, limits: Limits, counts: _Counts, part: Part | None = None
) -> Iterator[RawExample]:
    """The file's examples; none of a found file that begins with something else, which ``counts`` tells."""
    try:
        yield from read_examples(
            source.path,
            kind=options.kind,
            limits=limits,
            name=source.name,
            translation=options.translation,
            part=part,
        )
    except UnknownForm:
        if not source.found or counts.read or (part and part.begin):
            raise
        counts.is_other = True


def _cleaned(
    source: Source,
    options: DataOptions,
    limits: Limits,
    cleaner: Cleaner,
    counts: _Counts,
    samples: Samples,
    images: str | None,
    part: Part | None,
) -> Iterator[RawExample]:
    """Those that cleaning keeps, with pictures decoded; the others are counted."""
    seen = hashlib.sha256()
    for each in _read(source, options, limits, counts, part):
        raw = each
        if options.image_side and isinstance(raw, Labelled) and raw.image is not None:
            seen.update(bytes.fromhex(raw.record["image"]))
            raw = replace(raw, image=pixels(raw.image, options.image_side, raw.source).tobytes())
        done = cleaner.clean(raw, held=source.held)
        counts.add(raw, done)
        if done.rule and done.dropped:
            samples.of(done.rule, done.dropped)
        if done.example:
            yield done.example
    if images and seen.hexdigest() != images:
        raise Conflict(f"a picture of {source.name} was changed while it was read: start again")


def _write_documents(directory: Path, examples: Iterator[RawExample], options: DataOptions) -> None:
    with (
        (directory / "documents.jsonl").open("w", encoding="utf-8") as documents,
        (directory / "hashes.bin").open("wb") as hashes,
        (directory / "shingles.bin").open("wb") as shingles,
        (directory / "context.bin").open("wb") as context,
        (directory / "ends.bin").open("wb") as ends,
        (directory / IMAGES).open("wb") as pictures,
    ):
        for example in examples:
            said = [example.source, example.record, *([example.marks] if example.marks else [])]
            documents.write(json.dumps(said, ensure_ascii=False) + "\n")
            hashes.write(bytes.fromhex(example.sha256))
            if isinstance(example, Labelled) and example.image is not None:
                pictures.write(example.image)
            if options.near_duplicates is not None:
                each = learnt(example)
                shingles.write(each.shingles.tobytes())
                context.write(each.context.tobytes())
            ends.write(np.array([shingles.tell() // 4, context.tell() // 4], dtype=np.int64).tobytes())

"""Mask the names that a token classifier of one's own finds: a second pass over the collected documents.

Texts are read in batches of like lengths, long ones in windows that overlap. Memory is that of the model and of one batch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.progress import Progress
from train.data.cleaning.options import Personal
from train.data.cleaning.personal.mask import Mask, masked_by
from train.data.cleaning.samples import Sample, Samples
from train.data.collecting.collect import Collection, write_collection
from train.data.collecting.second_pass import model_sha256, next_name
from train.data.examples import RawExample
from train.data.options import DataOptions

if TYPE_CHECKING:
    from train.models.span_finder import SpanFinder

AT_ONCE = 256
"""Documents that are sorted by length."""
MASKED_BEFORE = re.compile(r"\[[A-Z]+(_\d+)?\]")


def without_names(
    collected: Sequence[Collection], data: DataOptions, options: Personal, work: Path, progress: Progress
) -> list[Collection]:
    """The collections anew; each in a folder of ``work`` that appears when it is whole. Raises InvalidInput for a model that
    is no token classifier, or has none of the labels."""
    from train.models.span_finder import SpanFinder

    asked = options.names
    assert asked
    digest = model_sha256(asked.model, "data.personal.names.model")
    finder = SpanFinder(asked.model, asked.labels, asked.threshold)
    made: list[Collection] = []
    for number, each in enumerate(collected):
        progress(f"looking for names by {asked.model.name}", 0.6 * number / len(collected))
        said = asked.model_dump(mode="json", exclude={"model"}) | {"consistent": options.consistent}
        directory = work / next_name(each, digest, said)
        made.append(_masked(each, finder, data, options, directory))
    return made


def _masked(
    collection: Collection, finder: SpanFinder, data: DataOptions, options: Personal, directory: Path
) -> Collection:
    counts = json.loads(json.dumps({"masked": {}} | collection.counts))
    samples = Samples()
    samples.add(_without(collection.samples, finder, options))

    def told() -> dict[str, Any]:
        return {**counts, "samples": samples.all()}

    def examples() -> Iterator[RawExample]:
        documents = collection.documents()
        while some := [document.raw for document in islice(documents, AT_ONCE)]:
            texts = list(dict.fromkeys(text for each in some for text in _texts(each, options)))
            found = dict(zip(texts, finder.spans(texts), strict=True))
            for each in some:
                mask = NameMask(options, found.__getitem__)
                yield masked_by(mask, each)
                if mask.counts:
                    counts["masked"]["name"] = counts["masked"].get("name", 0) + mask.counts["name"]

    return write_collection(directory, examples(), told, data)


class NameMask(Mask):
    """Replaces the names that ``find`` gives for a text."""

    def __init__(self, options: Personal, find: Callable[[str], list[tuple[int, int]]]) -> None:
        super().__init__(options)
        self._find = find

    def text(self, text: str) -> str:
        """With ``[NAME]`` or, where consistent, ``[NAME_1]``; what was masked before stays."""
        before = [match.span() for match in MASKED_BEFORE.finditer(text)]
        parts: list[str] = []
        end = 0
        for start, stop in self._find(text):
            if any(start < last and first < stop for first, last in before):
                continue
            parts += [text[end:start], self._placeholder("name", text[start:stop])]
            end = stop
            self.counts["name"] += 1
        return "".join([*parts, text[end:]]) if parts else text


def _texts(example: RawExample, options: Personal) -> list[str]:
    """All that :class:`NameMask` is going to look into."""
    asked: list[str] = []

    def none(text: str) -> list[tuple[int, int]]:
        asked.append(text)
        return []

    masked_by(NameMask(options, none), example)
    return asked


def _without(samples: Sequence[Sample], finder: SpanFinder, options: Personal) -> list[Sample]:
    """What is shown of examples that were left out."""
    spans = finder.spans([sample["text"] for sample in samples])
    return [
        {**sample, "text": NameMask(options, lambda _, found=found: found).text(sample["text"])}
        for sample, found in zip(samples, spans, strict=True)
    ]

"""Clean an example in all ways that the options name, one after the other, and say what was done.

characters -> too short, repeated -> language -> evaluation sets -> personal data. What is judged is judged before
personal data is masked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from everlearn.bundles.bundle import file_entry
from everlearn.errors import InvalidInput
from train.data.cleaning.clean import cleaned, said, why_dropped
from train.data.cleaning.decontaminate import EvaluationSet
from train.data.cleaning.language import LanguageFilter
from train.data.cleaning.options import Personal
from train.data.cleaning.personal.mask import Mask
from train.data.cleaning.words import words
from train.data.examples import RawExample, Text
from train.data.labelled.example import Labelled
from train.data.options import DataOptions
from train.data.reading.forms import UnknownForm
from train.data.reading.read import Limits, read_examples
from train.data.reading.sources import Source, given_sources

SPANS = ("token-classification", "question-answering")
SPOKEN_RULES = ("system", "developer")


@dataclass
class Outcome:
    """``example`` as it is kept, None where ``rule`` left it out. ``changes``: characters, by what was done; ``masked``:
    places, by kind; ``language``: where it was asked for."""

    example: RawExample | None = None
    rule: str | None = None
    changes: Counter[str] = field(default_factory=Counter[str])
    masked: Counter[str] = field(default_factory=Counter[str])
    language: str | None = None
    dropped: RawExample | None = None


class Cleaner:
    """Made once; cleans any number of examples. ``held``: files to measure with, which are evaluation sets, too.

    Raises InvalidInput for options that no text can be cleaned by, and as ``read_examples`` for evaluation sets.
    """

    def __init__(self, options: DataOptions, held: Sequence[Source] = ()) -> None:
        self._options = options
        if options.personal and options.kind in SPANS:
            raise InvalidInput(
                f"data.personal: the labels of {options.kind} stand at places in the text, which masking would move. "
                "Mask the texts before they are labelled",
                param="data.personal",
            )
        self._language = LanguageFilter(options.languages) if options.languages else None
        self._evaluation: EvaluationSet | None = None
        given = given_sources(options)
        if options.decontaminate:
            given["held"] = [*held]
            sources = [*given.get("decontaminate.against", ()), *held]
            self._evaluation = EvaluationSet(_asked_and_answered(sources, options), options.decontaminate)
        self.files_sha256 = {
            key: [file_entry(each.path).sha256 for each in files] for key, files in given.items()
        }
        """Of every file that decides what is kept, beside the options."""

    def clean(self, raw: RawExample, *, held: bool = False) -> Outcome:
        """``held``: it is measured with, so it may well be part of an evaluation set."""
        done = Outcome()
        example = cleaned(raw, self._options, done.changes)
        done.rule = self._why_dropped(example, held, done)
        if done.rule:
            done.dropped = example
            return done
        if self._options.personal:
            example = masked(example, self._options.personal, done.masked)
        done.example = example
        return done

    def _why_dropped(self, example: RawExample, held: bool, done: Outcome) -> str | None:
        if rule := why_dropped(example, self._options):
            return rule
        if self._language:
            done.language, is_kept = self._language.judge(said(example))
            if not is_kept:
                return "language"
        if self._evaluation and not held and self._evaluation.has_part_of(words(_content(example))):
            return "in_evaluation_set"
        return None


def masked(example: RawExample, options: Personal, counts: Counter[str]) -> RawExample:
    """Without personal data; ``counts`` says how many places of each kind were masked."""
    mask = Mask(options)
    if isinstance(example, Labelled):
        made = example.with_texts(mask.text)
    elif isinstance(example, Text):
        text = mask.text(example.text)
        made = example if text == example.text else replace(example, text=text)
    else:
        messages = [mask.message(message) for message in example.messages]
        made = replace(example, messages=messages)
    counts.update(mask.counts)
    return made


def _content(example: RawExample) -> str:
    """What it says but for its rules: many conversations share a system message."""
    if isinstance(example, Text):
        return example.text
    return said(
        replace(example, messages=[each for each in example.messages if each["role"] not in SPOKEN_RULES])
    )


def _asked_and_answered(sources: Sequence[Source], options: DataOptions) -> Iterator[str]:
    limits = Limits(max_line_bytes=options.max_line_bytes, min_examples=0)
    for source in sources:
        try:
            for raw in read_examples(
                source.path,
                kind=options.labelled or "auto",
                limits=limits,
                name=source.name,
                translation=options.translation,
            ):
                yield _content(cleaned(raw, options))
        except UnknownForm:
            if not source.found:
                raise

"""Clean an example in all ways that the options name, one after the other, and say what was done.

encoding -> characters -> lines taken out -> too short, repeated -> language -> quality -> harmful words -> evaluation
sets -> personal data. What is judged is judged before personal data is masked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from everlearn.bundles.bundle import file_entry
from everlearn.errors import InvalidInput
from train.data.cleaning.clean import cleaned, said, why_dropped, with_texts
from train.data.cleaning.decontaminate import EvaluationSet
from train.data.cleaning.encoding import repaired
from train.data.cleaning.language import LanguageFilter
from train.data.cleaning.lists import Phrases, read_list
from train.data.cleaning.personal.mask import masked
from train.data.cleaning.quality import QualityFilter
from train.data.cleaning.words import find_words
from train.data.examples import Chat, RawExample, Text
from train.data.options import DataOptions
from train.data.reading.forms import UnknownForm
from train.data.reading.read import Limits, read_examples
from train.data.reading.sources import Source, given_sources

RULES = ("system", "developer")
SPANS = ("token-classification", "question-answering")
"""The kinds whose labels stand at places in the text."""


@dataclass
class Outcome:
    """``example`` as it is kept, None where ``rule`` left it out, and it is ``dropped``. ``changes``: characters, by what
    was done; ``masked``: places, by kind; ``language``: where it was asked for."""

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
        _refuse_moved_labels(options)
        self._options = options
        given = given_sources(options)
        if options.decontaminate:
            given["held"] = [*held]
        self.files_sha256 = {
            key: [file_entry(each.path).sha256 for each in files] for key, files in given.items()
        }
        """Of every file that decides what is kept, beside the options."""
        lists = {key: [each.path for each in files] for key, files in given.items()}
        self._language = LanguageFilter(options.languages) if options.languages else None
        self._quality = QualityFilter(options.quality, lists) if options.quality else None
        self._harmful = (
            Phrases(read_list(lists["harmful.words"], "data.harmful.words"))
            if options.harmful and options.harmful.words
            else None
        )
        self._evaluation: EvaluationSet | None = None
        if options.decontaminate:
            sources = [*given.get("decontaminate.against", ()), *held]
            self._evaluation = EvaluationSet(_asked_and_answered(sources, options), options.decontaminate)
        self._words = lru_cache(maxsize=2)(find_words)

    def clean(self, raw: RawExample, *, held: bool = False) -> Outcome:
        """``held``: it is measured with, so it may well be part of an evaluation set."""
        done = Outcome()
        example = raw
        if encoding := self._options.encoding:
            example = with_texts(example, lambda text: repaired(text, encoding, done.changes))
        example = cleaned(example, self._options, done.changes)
        if self._quality and isinstance(example, Text):
            example = replace(example, text=self._quality.lines(example.text, self._words, done.changes))
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
        if (
            self._quality
            and isinstance(example, Text)
            and (rule := self._quality.why_poor(example.text, self._words))
        ):
            return rule
        options = self._options.harmful
        if self._harmful and options:
            inside = self._harmful.found(self._words(said(example)))
            if inside.sum() > options.max_share * len(inside):
                return "harmful_words"
        if (
            self._evaluation
            and not held
            and self._evaluation.has_part_of(self._words(_content(example)).hashes)
        ):
            return "in_evaluation_set"
        return None


def _refuse_moved_labels(options: DataOptions) -> None:
    if options.personal and options.kind in SPANS:
        raise InvalidInput(
            f"data.personal: the labels of {options.kind} stand at places in the text, which masking would move. "
            "Mask the texts before they are labelled",
            param="data.personal",
        )


def _content(example: RawExample) -> str:
    """What it says but for its rules: many conversations share a system message."""
    if not isinstance(example, Chat):
        return said(example)
    return said(replace(example, messages=[each for each in example.messages if each["role"] not in RULES]))


def _asked_and_answered(sources: Sequence[Source], options: DataOptions) -> Iterator[str]:
    limits = Limits(max_line_bytes=options.max_line_bytes, min_examples=0)
    kind = options.labelled or "auto"
    for source in sources:
        try:
            for raw in read_examples(
                source.path, kind=kind, limits=limits, name=source.name, translation=options.translation
            ):
                yield _content(cleaned(raw, options))
        except UnknownForm:
            if not source.found:
                raise

"""The data card: what went in, what was left out and why, and what came out, in numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from everlearn.bundles.bundle import Digest
from train.data.options import Count, DataOptions

MAX_DROPPED = 0.1
"""A larger share left out is a warning."""
MAX_LISTED = 8


class Change(BaseModel):
    """What cleaning did to texts that were read: how many of them, and how many characters of theirs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    examples: Count
    characters: Count


class SkippedCard(BaseModel):
    """What of the folders was not read: how many files, and the first of their names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: Count
    names: list[str]


class SourceCard(BaseModel):
    """One file. ``read`` = ``kept`` + everything in ``dropped``, ``exact_duplicates``, ``near_duplicates``.

    ``cut``: of those kept, conversations whose answers are not learnt beyond ``max_tokens``.
    ``forms``: how its examples were written, and how many so. ``ignored``: keys and columns that nothing was made
    of, and of how many examples. ``masked``: places of personal data, by kind. ``languages``: examples, where
    languages are filtered; ``und`` are those whose language nothing tells. ``marked``: examples that are kept and carry a
    mark, by the rule. ``images_sha256``: of the pictures that it holds or names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: Digest
    size_bytes: Count
    images_sha256: Digest | None = None
    forms: dict[str, Count]
    read: Count
    changed: dict[str, Change]
    ignored: dict[str, Count]
    masked: dict[str, Count] = {}
    languages: dict[str, Count] = {}
    marked: dict[str, Count] = {}
    dropped: dict[str, Count]
    exact_duplicates: Count
    near_duplicates: Count
    kept: Count
    cut: Count
    tokens: Count


class PartCard(BaseModel):
    """One side of the split. A document longer than ``max_tokens`` is several examples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    documents: Count
    examples: Count
    tokens: Count
    targets: Count
    store_sha256: Digest


class ComponentCard(BaseModel):
    """What a component of a mixture has to train on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    examples: Count
    tokens: Count


class LabelCard(BaseModel):
    """How often a label is on each side of the split: of classification in texts, of token classification in words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: Count
    held: Count


class DataCard(BaseModel):
    """card.json of prepared data. ``inputs_sha256`` names the files, the tokenizer and the options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[2] = 2
    inputs_sha256: Digest
    tokenizer_sha256: Digest
    vocab_size: Annotated[int, Field(gt=0)]
    options: DataOptions
    sources: list[SourceCard]
    skipped: dict[str, SkippedCard]
    train: PartCard
    held: PartCard
    test: PartCard | None = None
    notes: list[str] = []
    """What people must know that no count says; told where the data is prepared, and among a job's events."""
    labels: dict[str, LabelCard] = {}
    """Of labelled data, by name, in the order of their numbers."""
    components: dict[str, ComponentCard] = {}
    """Of a mixture, by name."""

    @property
    def _cut_are(self) -> str:
        return "examples" if self.options.labelled else "conversations"

    @property
    def read(self) -> int:
        return sum(source.read for source in self.sources)

    @property
    def kept(self) -> int:
        return sum(source.kept for source in self.sources)

    @property
    def dropped(self) -> dict[str, int]:
        """Of all sources, by reason, duplicates included."""
        total: dict[str, int] = {}
        for source in self.sources:
            duplicates = {
                "exact_duplicates": source.exact_duplicates,
                "near_duplicates": source.near_duplicates,
            }
            for reason, count in {**source.dropped, **duplicates}.items():
                total[reason] = total.get(reason, 0) + count
        return {reason: count for reason, count in sorted(total.items()) if count}

    @property
    def forms(self) -> dict[str, int]:
        return _sum(source.forms for source in self.sources)

    @property
    def ignored(self) -> dict[str, int]:
        return _sum(source.ignored for source in self.sources)

    @property
    def masked(self) -> dict[str, int]:
        return _sum(source.masked for source in self.sources)

    @property
    def languages(self) -> dict[str, int]:
        return _sum(source.languages for source in self.sources)

    @property
    def marked(self) -> dict[str, int]:
        return _sum(source.marked for source in self.sources)

    @property
    def changed(self) -> dict[str, Change]:
        """Of all sources, by what was done."""
        examples = _sum(
            {key: change.examples for key, change in each.changed.items()} for each in self.sources
        )
        characters = _sum(
            {key: change.characters for key, change in each.changed.items()} for each in self.sources
        )
        return {key: Change(examples=examples[key], characters=characters[key]) for key in examples}

    def told(self) -> list[str]:
        """What people should know about it, a line each; one that begins with "warning:" where that is much."""
        forms = ", ".join(f"{count} {form}" for form, count in self.forms.items())
        held = self.held.documents
        tested = f", {self.test.documents} to test with" if self.test else ""
        lines = [
            f"data: {self.read} examples read ({forms}); {self.train.documents} to train on, {held} held out{tested}"
        ]
        for name, part in self.components.items():
            lines.append(f"data: {name}: {part.examples} examples to train on, {part.tokens} tokens")
        if self.labels:
            counts = {name: each.train + each.held for name, each in self.labels.items()}
            lines.append(f"data: {len(counts)} labels: {_listed(counts)}")
        if self.dropped:
            lines.append(f"data: left out: {_listed(self.dropped)}")
        if changed := self.changed:
            parts = (
                f"{name.replace('_', ' ')} ({each.characters} characters of {each.examples} examples)"
                for name, each in changed.items()
            )
            lines.append(f"data: changed: {', '.join(parts)}")
        if self.masked:
            lines.append(f"data: masked: {_listed(self.masked)}")
        if self.marked:
            lines.append(f"data: kept and marked: {_listed(self.marked)}")
        if cut := sum(source.cut for source in self.sources):
            lines.append(
                f"data: cut: {cut} {self._cut_are} have more than {self.options.max_tokens} tokens, and end there"
            )
        if self.ignored:
            lines.append(f"data: not used of the examples: {_listed(self.ignored)}")
        for reason, skipped in self.skipped.items():
            names = ", ".join(skipped.names) + (", …" if skipped.files > len(skipped.names) else "")
            lines.append(f"data: skipped, {reason}: {names}")
        return [
            *lines,
            *(f"warning: {each}" for each in self.warnings()),
            *(f"note: {each}" for each in self.notes),
        ]

    def warnings(self) -> list[str]:
        """What is more than one would leave unseen."""
        gone = sum(self.dropped.values())
        if gone <= MAX_DROPPED * self.read:
            return []
        share = 100 * gone / self.read
        return [f"{share:.0f}% of the examples ({gone} of {self.read}) are left out: {_listed(self.dropped)}"]


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for each in counts:
        for key, count in each.items():
            total[key] = total.get(key, 0) + count
    return {key: total[key] for key in sorted(total)}


def _listed(counts: dict[str, int]) -> str:
    shown = list(counts.items())[:MAX_LISTED]
    more = f" and {len(counts) - len(shown)} more" if len(counts) > len(shown) else ""
    return ", ".join(f"{key.replace('_', ' ')} {count}" for key, count in shown) + more

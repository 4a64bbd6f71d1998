"""The data card: what went in, what was left out and why, and what came out, in numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from everlearn.bundle import Digest

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class DataOptions(BaseModel):
    """How data is prepared. Lengths are in characters, shares from 0 to 1.

    ``max_tokens`` cuts: set it to the tokens a model is trained on at once. ``near_duplicates`` is the Jaccard
    similarity from which of two texts only one is kept; None keeps all that are not equal.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["auto", "text", "chat"] = "auto"
    held_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    max_tokens: Annotated[int, Field(ge=2)] = 2048
    min_chars: Count = 16
    max_chars: Annotated[int, Field(gt=0)] = 2_000_000
    max_repeated_lines: Share = 0.5
    max_repeated_chars: Share = 0.5
    near_duplicates: Annotated[float, Field(ge=0.5, le=1)] | None = 0.8
    min_examples: Annotated[int, Field(ge=1)] = 1
    max_line_bytes: Annotated[int, Field(gt=0)] = 2**20


class SourceCard(BaseModel):
    """One file. ``read`` = ``kept`` + everything in ``dropped``, ``exact_duplicates``, ``near_duplicates``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: Digest
    size_bytes: Count
    read: Count
    dropped: dict[str, Count]
    exact_duplicates: Count
    near_duplicates: Count
    kept: Count
    tokens: Count


class PartCard(BaseModel):
    """One side of the split. A document longer than ``max_tokens`` is several examples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    documents: Count
    examples: Count
    tokens: Count
    targets: Count
    store_sha256: Digest


class DataCard(BaseModel):
    """card.json of prepared data. ``inputs_sha256`` names the files, the tokenizer and the options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    inputs_sha256: Digest
    tokenizer_sha256: Digest
    vocab_size: Annotated[int, Field(gt=0)]
    options: DataOptions
    sources: list[SourceCard]
    train: PartCard
    held: PartCard
    notes: list[str] = []
    """What people must know that no count says; told where the data is prepared, and among a job's events."""

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

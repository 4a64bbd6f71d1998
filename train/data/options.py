"""Options of data preparation, under a recipe's ``data``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from train.data.labelled.example import LabelledKind

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class DataOptions(BaseModel):
    """How data is prepared. Lengths are in characters (of Chinese, Japanese, Korean and Thai, one counts as four of
    ``min_chars``), shares from 0 to 1.

    ``max_tokens`` cuts: set it to the tokens a model is trained on at once. ``near_duplicates`` is the Jaccard
    similarity from which of two texts only one is kept; None keeps all that are not equal. ``normalize`` writes
    texts in Unicode's NFC, ``strip`` takes spaces from line ends: both change code and Markdown. ``min_held``: so many
    documents at least are held out, and of a quarter up to twice as many, however small ``held_fraction`` is.
    ``stride``: so many tokens two windows of a long context have in common (question-answering; a quarter of
    ``max_tokens`` by default). ``translation``: which way, as in en-es, where records hold several languages.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["auto", "text", "chat"] | LabelledKind = "auto"
    held_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    min_held: Count = 0
    max_tokens: Annotated[int, Field(ge=2)] = 2048
    min_chars: Count = 16
    max_chars: Annotated[int, Field(gt=0)] = 2_000_000
    max_repeated_lines: Share = 0.5
    max_repeated_chars: Share = 0.5
    near_duplicates: Annotated[float, Field(ge=0.5, le=1)] | None = 0.8
    normalize: bool = False
    strip: bool = False
    min_examples: Annotated[int, Field(ge=1)] = 1
    max_line_bytes: Annotated[int, Field(gt=0)] = 2**20
    stride: Annotated[int, Field(ge=0)] | None = None
    translation: Annotated[str, Field(pattern=r"^\w+-\w+$")] | None = None

    @property
    def labelled(self) -> LabelledKind | None:
        """``kind``, where it is one of labelled data."""
        return None if self.kind in ("auto", "text", "chat") else self.kind


class TokenizerOptions(BaseModel):
    """The kind of tokenizer that a model from scratch gets, and how it writes texts before it splits them.

    ``kind``: bpe is byte-level BPE, as decoders have it; wordpiece is BERT's, with [CLS], [SEP] and [MASK]; unigram is
    T5's, with ``sentinels`` and bytes for what it does not know. ``normalize`` is Unicode's NFC or NFKC.
    ``strip_accents`` writes é as e. None is what the kind's family does: BERT writes lower case without accents, T5
    in NFKC, byte-level BPE changes nothing. A string stands for its ``kind``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    normalize: Literal["none", "nfc", "nfkc"] | None = None
    lowercase: bool | None = None
    strip_accents: bool | None = None
    sentinels: Annotated[int, Field(ge=0, le=1000)] = 100

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

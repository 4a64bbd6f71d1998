"""Options of data preparation, under a recipe's ``data``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from train.data.cleaning.options import (
    FILE_KEYS,
    MODEL_KEYS,
    Boilerplate,
    Count,
    Decontaminate,
    Encoding,
    Group,
    HarmClassifier,
    Harmful,
    Languages,
    NameFinder,
    Personal,
    Quality,
    Share,
)
from train.data.labelled.example import LabelledKind

RemoteUrl = Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://", max_length=4096)]
"""A file, a folder or a pattern elsewhere, see ``train.data.reading.remote``."""


class DataOptions(BaseModel):
    """How data is prepared. Lengths are in characters (of Chinese, Japanese, Korean and Thai, one counts as four of
    ``min_chars``), shares from 0 to 1.

    ``max_tokens`` cuts: set it to the tokens a model is trained on at once. ``near_duplicates`` is the Jaccard
    similarity from which of two texts only one is kept; None keeps all that are not equal. ``normalize`` writes
    texts in Unicode's NFC, ``strip`` takes spaces from line ends: both change code and Markdown. ``min_held``: so many
    documents at least are held out, and of a quarter up to twice as many, however small ``held_fraction`` is.
    ``stride``: so many tokens two windows of a long context have in common (question-answering; a quarter of
    ``max_tokens`` by default). ``translation``: which way, as in en-es, where records hold several languages.
    ``image_size``: pixels of a side, to which pictures are brought (contrastive; by default what the model sees).
    ``test_fraction`` of the documents go to a third store, ``test/``, that no run reads.
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
    image_size: Annotated[int, Field(ge=16, le=1024)] | None = None
    test_fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    encoding: Encoding | None = None
    languages: Languages | None = None
    quality: Quality | None = None
    boilerplate: Boilerplate | None = None
    harmful: Harmful | None = None
    personal: Personal | None = None
    decontaminate: Decontaminate | None = None

    @model_validator(mode="after")
    def _leaves_some_to_train_on(self) -> DataOptions:
        if self.held_fraction + (self.test_fraction or 0) >= 1:
            raise ValueError("held_fraction and test_fraction together leave nothing to train on")
        return self

    def deciding(self) -> dict[str, Any]:
        """What decides the bytes that are prepared; an option that earlier versions had not, only where it is used, so
        that what they prepared is still the same. Files the user gives decide by what they hold alone."""
        places: dict[str, dict[str, Any]] = {
            group: dict.fromkeys(keys, True) for group, keys in FILE_KEYS.items()
        }
        for group, key in MODEL_KEYS.items():
            places.setdefault(group, {})[key] = {"model"}
        said = self.model_dump(mode="json", exclude=places)
        return {
            key: value
            for key, value in said.items()
            if key in FIRST_OPTIONS or value != type(self).model_fields[key].default
        }

    @property
    def labelled(self) -> LabelledKind | None:
        """``kind``, where it is one of labelled data."""
        return None if self.kind in ("auto", "text", "chat") else self.kind

    @property
    def image_side(self) -> int | None:
        """Pixels of a side, of data with pictures: 224, as CLIP's first models have, unless said."""
        return (self.image_size or 224) if self.kind == "contrastive" else None

    @property
    def cleans(self) -> bool:
        """Whether any group of options is on."""
        return any(isinstance(group, Group) for _, group in self)

    def given_files(self) -> dict[str, tuple[Path, ...]]:
        """The user's files beside the data, by dotted key."""
        found: dict[str, tuple[Path, ...]] = {}
        for name, keys in FILE_KEYS.items():
            group = getattr(self, name)
            found |= {f"{name}.{key}": getattr(group, key) for key in keys if group}
        return found

    @property
    def harm_classifier(self) -> HarmClassifier | None:
        """The model that tells what is harmful, where one is asked."""
        return self.harmful.classifier if self.harmful else None

    @property
    def name_finder(self) -> NameFinder | None:
        """The model that finds names, where one is asked."""
        return self.personal.names if self.personal else None

    @property
    def models(self) -> dict[str, Path]:
        """Those that look at what is collected, by dotted key."""
        asked = {
            f"{group}.{key}": getattr(getattr(self, group), key, None) for group, key in MODEL_KEYS.items()
        }
        return {key: model.model for key, model in asked.items() if model}

    def with_models(self, at: Callable[[Path], Path]) -> dict[str, Group]:
        """The groups that name models, with each path as ``at`` gives it."""
        made: dict[str, Group] = {}
        for name, key in MODEL_KEYS.items():
            group = getattr(self, name)
            if group and (asked := getattr(group, key)):
                made[name] = group.model_copy(
                    update={key: asked.model_copy(update={"model": at(asked.model)})}
                )
        return made

    def with_files(self, at: Callable[[Path], Path], at_model: Callable[[Path], Path]) -> dict[str, Group]:
        """The groups that name files or models, with each path as ``at`` or ``at_model`` gives it."""
        made = self.with_models(at_model)
        for name, keys in FILE_KEYS.items():
            if group := made.get(name) or getattr(self, name):
                files = {key: tuple(map(at, getattr(group, key))) for key in keys}
                made[name] = group.model_copy(update=files)
        return made


FIRST_OPTIONS = frozenset(
    {
        *("kind", "held_fraction", "min_held", "max_tokens", "min_chars", "max_chars", "max_repeated_lines"),
        *("max_repeated_chars", "near_duplicates", "normalize", "strip", "min_examples", "max_line_bytes"),
    }
)
"""What data was prepared with before there were others."""


class TokenizerOptions(BaseModel):
    """The kind of tokenizer that a model from scratch gets, and how it writes texts before it splits them.

    ``kind``: bpe is byte-level BPE, as decoders have it; wordpiece is BERT's, with [CLS], [SEP] and [MASK]; unigram is
    T5's, with ``sentinels`` and bytes for what it does not know. ``normalize`` is Unicode's NFC or NFKC.
    ``strip_accents`` writes é as e. None is what the kind's family does: BERT writes lower case without accents, T5
    in NFKC, byte-level BPE changes nothing. A string stands for its ``kind``. ``of``: not a new one, but that of a model
    here, by its name, or of a folder, unchanged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: Path | None = None
    kind: Literal["bpe", "wordpiece", "unigram"] = "bpe"
    normalize: Literal["none", "nfc", "nfkc"] | None = None
    lowercase: bool | None = None
    strip_accents: bool | None = None
    sentinels: Annotated[int, Field(ge=0, le=1000)] = 100

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _as_it_is(self) -> TokenizerOptions:
        others = {name: field.default for name, field in type(self).model_fields.items() if name != "of"}
        if self.of and not self.of.name:
            raise ValueError("of takes the name of a model, or a folder")
        if self.of and any(getattr(self, name) != default for name, default in others.items()):
            raise ValueError("of takes a tokenizer as it is: leave out its kind and how it writes texts")
        return self

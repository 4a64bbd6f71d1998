"""Options of cleaning, under a recipe's ``data``: a group for each way of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_serializer, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]

PersonalKind = Literal["email", "phone", "card", "iban", "id", "ip", "key"]
PERSONAL_KINDS: tuple[PersonalKind, ...] = get_args(PersonalKind)


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str | Path) else value


Files = Annotated[tuple[Path, ...], BeforeValidator(_listed)]
"""Files that the user gives; relative to the recipe."""


class Group(BaseModel):
    """Options of one kind of cleaning; a recipe without the key has none of it, and ``true`` takes the defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_the_defaults(cls, value: Any) -> Any:
        return {} if value is True else value


class Encoding(Group):
    """Texts that were read by a wrong encoding are repaired, and written in Unicode's ``form``; code is spared."""

    repair: bool = True
    form: Literal["NFC", "NFKC"] | None = None


class Languages(Group):
    """Texts in other languages than ``keep`` (ISO 639-1) are left out, where the language is told with
    ``min_probability``; see ``train.data.cleaning.language``."""

    keep: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]
    min_probability: Share = 0.65


class Quality(Group):
    """Sets of ``rules`` for prose, and what lines are taken out of it: those with phrases of ``advertisements`` (a list
    of our own) or of ``lines``, and those that link to hosts in ``urls``."""

    rules: Annotated[tuple[Literal["gopher", "c4"], ...], BeforeValidator(_listed)] = ()
    advertisements: bool = False
    lines: Files = ()
    urls: Files = ()


class Boilerplate(Group):
    """Lines that more than ``max_documents`` texts have are taken out of all; of lines of at least ``min_chars``."""

    max_documents: Annotated[int, Field(ge=1)] = 10
    min_chars: Count = 12


class HarmClassifier(Group):
    """A model of task ``classify``: its folder, or in a recipe its name among the registered ones. Texts to which it gives
    ``label`` with a probability of ``threshold`` or more are left out, or (``mark``) kept with that probability."""

    model: Path
    label: str
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    action: Literal["drop", "mark"] = "drop"


class Harmful(Group):
    """Texts of which a larger share than ``max_share`` is words of these lists are left out; and those that the
    ``classifier`` finds."""

    words: Files = ()
    max_share: Share = 0.0
    classifier: HarmClassifier | None = None

    @model_validator(mode="after")
    def _by_something(self) -> Harmful:
        if not self.words and not self.classifier:
            raise ValueError("harmful needs words (files of them), or a classifier")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: Any) -> dict[str, Any]:
        """Without a classifier, what was said before there was one."""
        said = handler(self)
        return said if self.classifier else {key: value for key, value in said.items() if key != "classifier"}


class NameFinder(Group):
    """A model of task ``token_classify``: its folder, or in a recipe its name among the registered ones. Words to which it
    gives one of ``labels`` (``PER`` is B-PER and I-PER), with a probability of ``threshold`` or more, are names."""

    model: Path
    labels: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)] = ("PER", "PERSON")
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.5


class Personal(Group):
    """Personal data of these ``kinds`` becomes ``[EMAIL]``; where ``consistent``, ``[EMAIL_1]``, the same number for
    the same value within one document. What the model in ``names`` finds becomes ``[NAME]``."""

    names: NameFinder | None = None
    kinds: Annotated[tuple[PersonalKind, ...], BeforeValidator(_listed), Field(min_length=1)] = PERSONAL_KINDS
    consistent: bool = False

    @model_serializer(mode="wrap")
    def _as_before(self, handler: Any) -> dict[str, Any]:
        """Without ``names``, what was said before there were any."""
        said = handler(self)
        return said if self.names else {key: value for key, value in said.items() if key != "names"}


class Decontaminate(Group):
    """Texts to train on that have so many ``words`` in a row in common with the evaluation sets in ``against``, or
    with ``held`` files, are left out."""

    against: Files = ()
    words: Annotated[int, Field(ge=5, le=100)] = 13


FILE_KEYS = {
    "quality": ("lines", "urls"),
    "harmful": ("words",),
    "decontaminate": ("against",),
}
"""By group, the keys whose values are files that the user gives."""

MODEL_KEYS = {"harmful": "classifier", "personal": "names"}
"""By group, the key under which a model is named that looks at what is collected."""

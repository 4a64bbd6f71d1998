"""The training recipe: a YAML file that determines a run.

``read_recipe`` maps the file onto :class:`TrainRecipe` one to one; an unknown key is an error that names its line
and the nearest known key. Everything has a default that works but the data.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from everlearn.errors import ConfigError
from everlearn.settings import flatten
from everlearn.settings_file import SettingsFile, read_settings_file
from everlearn.suggest import did_you_mean
from train.data.augmenting.options import Augment
from train.data.cleaning.options import FILE_KEYS
from train.data.options import FIRST_OPTIONS, DataOptions
from train.models.architecture import Architecture
from train.objectives.table import ObjectiveSpec, find_objective, implied, refuse_inconsistent
from train.recipe_data import Data, anchored, anchored_model, anchored_path

Recipe = TypeVar("Recipe", bound=BaseModel)

# What may change between two attempts at one run: it moves work around, and changes no sum.
OPERATIONAL = frozenset(
    {
        "name",
        "parallel",
        "ranks",
        "threads",
        "micro_batch",
        "gradient_checkpointing",
        "checkpoint",
        "log",
    }
)

# Where something lies, or what it is called. What it holds decides, and is compared beside: train/runs/identity.py.
PLACES = frozenset(
    {
        "base",
        "teacher",
        "student.model",
        "data.train",
        "data.held",
        "data.store",
        "data.held_store",
        *(f"data.{group}.{key}" for group, keys in FILE_KEYS.items() for key in keys),
        "data.harmful.classifier.model",
        "data.personal.names.model",
        "architecture.tokenizer.of",
        "keep.store",
    }
)


AS_BEFORE: Mapping[str, tuple[Any, ...]] = {
    "architecture.family": ("llama",),
    "architecture.init": ("family",),
    "architecture.experts": (None,),
    "architecture.tokenizer": (None,),
    "architecture.tokenizer.of": (None,),
    "classification": (None,),
    "embedding": (None,),
    "contrastive": (None,),
    "architecture.images": (None,),
    "architecture.projection": (None,),
    "data.mixture": (None,),
    "data.curriculum": (None,),
    "dropout": (None,),
    "label_smoothing": (0,),
    "z_loss": (0,),
}
"""Keys that earlier recipes did not have, and the values that say what was done without them."""


CHOSEN = "<name>"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Tune(_Part):
    """``tune: full``, ``tune: lora`` or ``tune: {method: lora, rank: 16}``.

    LoRA (arXiv 2106.09685) trains low-rank updates of the linear layers and merges them at the end.
    """

    method: Literal["full", "lora"] = "full"
    rank: int = Field(default=16, ge=1, le=2**16)
    alpha: float = Field(default=32, gt=0, le=1e6)
    dropout: float = Field(default=0, ge=0, lt=1)
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"

    @field_validator("targets", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) and value != "all-linear" else value

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value


Beta = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(_Part):
    """AdamW (arXiv 1711.05101). ``clip``: the largest norm of a step's gradient; 0 does not clip."""

    lr: float = Field(default=1e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0, le=1)
    weight_decay: float = Field(default=0.1, ge=0, le=1e3)
    clip: float = Field(default=1.0, ge=0)


class Schedule(_Part):
    """A linear warm-up, then a cosine down to ``final_fraction`` of the peak (arXiv 1608.03983)."""

    warmup_fraction: float = Field(default=0.03, ge=0, le=1)
    final_fraction: float = Field(default=0.1, ge=0, le=1)


class Checkpoint(_Part):
    """When to save: every so many steps, and whenever ``every_s`` seconds went by."""

    every_steps: int | None = Field(default=None, ge=1)
    every_s: float = Field(default=300, gt=0)
    keep: int = Field(default=2, ge=1)


class Validation(_Part):
    """The held-out data is measured before and after training and every ``every_steps`` steps, on at most ``tokens`` tokens."""

    tokens: int = Field(default=65536, ge=1)
    every_steps: int | None = Field(default=None, ge=1)


class Keep(_Part):
    """Text on which the model shall go on predicting what its base predicts, while it learns the rest.

    ``store`` is a prepared folder; a step sees as large a part of it as of the new data. ``weight``: of the mean
    divergence from the base there, in nats, beside the mean loss of the new text.
    """

    store: Path
    weight: float = Field(default=1.0, gt=0, le=1e6)


class Classification(_Part):
    """``class_weights``: of each label in the loss, ``balanced`` for the inverse of how often it is there."""

    class_weights: Literal["balanced"] | dict[str, Annotated[float, Field(gt=0, le=1e6)]] | None = None


class Embedding(_Part):
    """``scale``: of cosine similarities, 1 / temperature. ``dimensions``: lengths at which an embedding, cut off, shall be
    good as well (Matryoshka). ``pooling``: the base's own by default, else the mean."""

    scale: float = Field(default=20, gt=0, le=1e4)
    dimensions: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] | None = None
    pooling: Literal["mean", "cls"] | None = None


class Contrastive(_Part):
    """``augment``: how the pictures of a step may look otherwise than the data's. Validation sees them as they are."""

    augment: Augment | None = None


class FitOptions(_Part):
    """What the loop needs to know of a run, whatever is trained.

    ``batch_tokens`` is for one optimizer step over all ranks; ``micro_batch`` the most rows that pass through the
    model at once on one rank. Without ``steps`` the data passes ``epochs`` times.
    """

    sequence_tokens: int = Field(default=512, ge=2, le=2**24)
    batch_tokens: int = Field(default=8192, ge=2, le=2**36)
    micro_batch: int = Field(default=4, ge=1, le=2**20)
    epochs: float = Field(default=1, gt=0, le=1e6)
    steps: int | None = Field(default=None, ge=1, le=10**9)
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    checkpoint: Checkpoint = Checkpoint()
    validation: Validation = Validation()
    seed: int = Field(default=0, ge=0, lt=2**32)
    log: Literal["tensorboard", "none"] = "none"

    @model_validator(mode="after")
    def _whole_rows(self) -> FitOptions:
        if self.batch_tokens % self.sequence_tokens:
            near = max(1, round(self.batch_tokens / self.sequence_tokens)) * self.sequence_tokens
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) must be a multiple of sequence_tokens "
                f"({self.sequence_tokens}); {near} would do"
            )
        return self

    @property
    def rows(self) -> int:
        """Rows of ``sequence_tokens`` in one optimizer step, over all ranks."""
        return self.batch_tokens // self.sequence_tokens


class Smoothing(NamedTuple):
    """What is added to the cross-entropy of a target; see ``train.objectives.linear_loss.cross_entropies``."""

    labels: float = 0.0
    z: float = 0.0


class TrainRecipe(FitOptions):
    """``everlearn train``. ``base`` is a model to go on from; without one, ``architecture`` starts from scratch.

    ``objective``: one of ``train.objectives.table``; by default what the other keys imply. ``dropout``: everywhere in
    the model; by default as its family, or its base, has it. ``label_smoothing`` (arXiv 1512.00567) and ``z_loss``
    (arXiv 2204.02311) are of the training loss alone, not of what validation measures.
    """

    name: str | None = None
    base: str | None = None
    architecture: Architecture | None = None
    objective: str | None = None
    data: Data
    keep: Keep | None = None
    classification: Classification | None = None
    embedding: Embedding | None = None
    contrastive: Contrastive | None = None
    tune: Tune = Tune()
    dropout: float | None = Field(default=None, ge=0, lt=1)
    label_smoothing: float = Field(default=0, ge=0, lt=1)
    z_loss: float = Field(default=0, ge=0, le=1)
    parallel: Literal["none", "ddp", "fsdp2"] = "none"
    ranks: int = Field(default=1, ge=1, le=1024)
    threads: int | None = Field(default=None, ge=1, le=4096)

    @property
    def objective_spec(self) -> ObjectiveSpec:
        """The objective that the recipe names or implies."""
        return find_objective(self.objective) if self.objective else implied(dict(self))

    @property
    def smoothing(self) -> Smoothing:
        return Smoothing(self.label_smoothing, self.z_loss)

    @property
    def data_options(self) -> DataOptions:
        """How its data is prepared, with what the objective and the model decide."""
        said = self.data.model_dump(include=set(DataOptions.model_fields))
        said |= {"max_tokens": self.data.max_tokens or self.sequence_tokens}
        images = self.architecture.images if self.architecture else None
        if images and not self.data.image_size:
            said |= {"image_size": images.size}
        return DataOptions(**said | {"kind": self.objective_spec.data or self.data.kind})

    @field_validator("objective")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        return None if value is None else find_objective(value).name

    @model_validator(mode="after")
    def _consistent(self) -> TrainRecipe:
        refuse_inconsistent(self.objective_spec, dict(self))
        if self.ranks > 1 and self.parallel == "none":
            raise ValueError(f"ranks is {self.ranks}: say how they share the work, parallel: ddp or fsdp2")
        if self.rows % self.ranks:
            raise ValueError(
                f"a step has {self.rows} rows (batch_tokens / sequence_tokens), which {self.ranks} ranks "
                "cannot share evenly"
            )
        spec = self.objective_spec
        if self.data.kind not in ("auto", spec.data) and (spec.data or self.data.labelled):
            raise ValueError(
                f"data.kind is {self.data.kind}, and objective: {spec.name} learns from {spec.data or 'texts and chats'}: "
                "leave data.kind out"
            )
        if (self.label_smoothing or self.z_loss) and spec.task in (
            "question_answer",
            "score",
            "embed",
            "image_text",
        ):
            raise ValueError(f"objective: {spec.name} has neither label_smoothing nor z_loss")
        for key in ("classification", "contrastive", "embedding"):
            if getattr(self, key) and spec.name != key:
                raise ValueError(f"{key} sets up objective: {key}, and objective is {spec.name}")
        if spec.task == "image_text" and self.parallel == "fsdp2":
            raise ValueError(
                "parallel: fsdp2 does not divide CLIP's temperature, a single number: ddp would do"
            )
        if self.keep and self.data.mixture:
            raise ValueError("keep has a share of its own in each step, and none in a mixture: leave one out")
        if self.architecture and self.keep:
            raise ValueError("keep needs a base: a model from scratch has nothing to keep")
        if self.architecture and self.tune.method == "lora":
            raise ValueError("tune: lora needs a base; a model from scratch is trained in full")
        return self


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> TrainRecipe:
    """The recipe of a YAML file; ``overrides`` are ``key.below=value``. Paths are relative to the file.

    Raises ConfigError with file, line and the nearest known key.
    """
    file = read_settings_file(path)
    values: Mapping[str, Any] = file.values
    said = [_parsed(override) for override in overrides]
    for key, value in said:
        values = _override(values, key, key.split("."), value)
    recipe = validate_recipe(TrainRecipe, values, file, [key for key, _ in said])
    folder = path.absolute().parent
    keep = recipe.keep and recipe.keep.model_copy(update={"store": anchored_path(recipe.keep.store, folder)})
    made = recipe.architecture and recipe.architecture.with_tokenizer_of(
        partial(anchored_model, folder=folder)
    )
    update = {"data": anchored(recipe.data, folder), "keep": keep, "architecture": made}
    return recipe.model_copy(update=update)


def validate_recipe(
    kind: type[Recipe],
    values: Mapping[str, Any],
    file: SettingsFile | None = None,
    overridden: Sequence[str] = (),
) -> Recipe:
    """``values`` as a ``kind``, some of them ``overridden`` by --set and not as the file has them.

    Raises ConfigError naming the first fault and its place and, for an unknown key, the nearest.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in fault["loc"])
    known = [_named_as(one, key) for one in recipe_keys(kind)]
    while key and key not in known and fault["type"] != "extra_forbidden":
        key = key.rpartition(".")[0]  # the branch of a union, or the place in a list
    place = _place(key, file, overridden)
    if fault["type"] == "extra_forbidden":
        raise ConfigError(f"{place}unknown recipe key {key!r}{did_you_mean(key, known)}", param=key)
    if fault["type"] == "missing":
        key = ".".join(str(part) for part in fault["loc"])
        raise ConfigError(f"{place}the recipe says nothing about {key!r}, which has no default", param=key)
    shown = f" (got {fault['input']!r})" if not isinstance(fault["input"], Mapping | BaseModel) else ""
    message = fault["msg"].removeprefix("Value error, ").replace("valid tuple", "valid list")
    named = f"{key}: " if key and not place.endswith(f" {key}: ") else ""
    raise ConfigError(f"{place}{named}{message}{shown}", param=key or None)


def _place(key: str, file: SettingsFile | None, overridden: Sequence[str]) -> str:
    """``recipe.yaml:7: ``, or ``--set optimizer.lr: `` where the value came from there."""
    for one in reversed(overridden):
        if key and (f"{key}.".startswith(f"{one}.") or f"{one}.".startswith(f"{key}.")):
            return f"--set {one}: "
    return f"{file.path}:{line}: " if file and (line := file.line(key)) else ""


def recipe_keys(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key a recipe of this kind may hold; ``<name>`` stands for one that the recipe chooses."""
    for name, field in kind.model_fields.items():
        yield f"{prefix}{name}"
        for part in _models(field.annotation):
            yield from recipe_keys(part, f"{prefix}{name}.")
        for part in _models(field.annotation, of_values=True):
            yield from recipe_keys(part, f"{prefix}{name}.{CHOSEN}.")


def deciding(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe's own values changes the result of a run, by dotted key; see OPERATIONAL and PLACES.

    What earlier recipes had no key for is left out where it says what they did: an objective that the recipe implies
    anyway, the keys of :data:`AS_BEFORE`, options of data that are not used, and other later keys that are null.
    """
    later = DataOptions.model_fields.keys() - FIRST_OPTIONS
    same_without = {"objective": (None, implied(recipe).name)} | dict(AS_BEFORE)
    same_without |= {f"data.{key}": (DataOptions.model_fields[key].default,) for key in later}
    return {
        key: value
        for key, value in flatten(recipe)
        if key.partition(".")[0] not in OPERATIONAL
        and key not in PLACES
        and not (key.startswith("data.mixture.") and key.endswith(".train"))
        and value not in same_without.get(key.removeprefix("student."), ())
    }


def recipe_diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines ``key: old → new`` for what would change the result of a run; see :func:`deciding`.

    ``old`` may have been written by an earlier version.
    """
    before, after = _deciding_then(old), deciding(new)
    return [
        f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in before | after
        if before.get(key) != after.get(key)
    ]


def _deciding_then(old: Mapping[str, Any]) -> dict[str, Any]:
    """As :func:`deciding`, in today's keys: those that had one value alone are gone, and what was always so is said."""
    said = deciding(old)
    if said.pop("schedule.decay", None) is None:
        return said
    said.pop("objective", None)
    if "data.min_chars" not in said:
        return said
    cleaned = not old["data"].get("store")
    return {"data.min_held": 0, "data.normalize": cleaned, "data.strip": cleaned} | said


def _named_as(known: str, key: str) -> str:
    """``known`` with the names that ``key`` has chosen."""
    parts = zip_longest(known.split("."), key.split("."))
    return ".".join(named if part == CHOSEN and named else part for part, named in parts if part)


def _models(annotation: Any, of_values: bool = False) -> list[type[BaseModel]]:
    """Those that a value may be, or of a mapping's values."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for one in get_args(annotation) for model in _models(one, of_values)]
    if of_values:
        return _models(get_args(annotation)[1]) if get_origin(annotation) is dict else []
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _parsed(override: str) -> tuple[str, Any]:
    key, found, text = override.partition("=")
    if not found or not all(key.split(".")):
        raise ConfigError(f"--set takes key=value, as in optimizer.lr=0.0003, not {override[:80]!r}")
    try:
        return key, yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"--set {key}: {text[:80]!r} is not a YAML value: {why}", param=key) from None


def _override(values: Mapping[str, Any], key: str, path: Sequence[str], value: Any) -> dict[str, Any]:
    """``values`` with another value at ``path``; ``key`` is the whole of it, for messages."""
    first, *rest = path
    if not rest:
        return {**values, first: value}
    below = values.get(first)
    if first == "tune" and isinstance(below, str):
        below = {"method": below}
    if below is not None and not isinstance(below, Mapping):
        raise ConfigError(f"--set {key}: {first} is {below!r}, with no keys below it", param=key)
    return {**values, first: _override(below or {}, key, rest, value)}

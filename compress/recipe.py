"""The compression recipe: the YAML behind ``everlearn compress --recipe``, and ``recipe`` in a bundle.

One calibration set serves every step of a plan::

    calibration: {text: corpus.txt, tokens: 16384}
    prune: {layers: 24}
    heal: {data: {train: [corpus.txt]}, steps: 100}
    targets:
      - {to: int4-onnx, weights: gptq}
      - {to: w8a8}
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from compress.quantize.methods import (
    DEFAULT_METHOD,
    METHODS,
    default_high_precision_fraction,
    methods_for,
)
from compress.targets.table import DEFAULT_TARGET, TARGETS
from everlearn.settings_file import read_settings_file
from train.recipe import FitOptions, validate_recipe
from train.recipe_data import PlainData, anchored

WIDE_SHARE_RENAMED = (
    "wide_share is called high_precision_fraction now; a later version will not know the old name"
)


def renamed(said: Mapping[str, Any]) -> dict[str, Any]:
    """A target's keys as they are called today."""
    return {"high_precision_fraction" if key == "wide_share" else key: value for key, value in said.items()}


def _one_of(table: Mapping[str, object]) -> AfterValidator:
    """A name of ``table``, looked up when it is validated: a name that was added since is one, too."""

    def known(name: str) -> str:
        if name not in table:
            *names, last = (repr(one) for one in table)
            raise ValueError(f"Input should be {', '.join(names)} or {last}")
        return name

    return AfterValidator(known)


class Calibration(BaseModel):
    """Which tokens a quantizer reads. Without ``text`` and ``store``: the shipped text that is not measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Path | None = None
    """A text file; split into windows in its order."""
    store: Path | None = None
    """A token store of ``train.data``; documents chosen by ``seed``."""
    tokens: int = Field(default=8192, ge=64)
    sequence_tokens: int = Field(default=512, ge=16)
    seed: int = 0

    @model_validator(mode="after")
    def _one_source(self) -> Calibration:
        if self.text and self.store:
            raise ValueError("name a text or a store, not both")
        return self


class PlannedTarget(BaseModel):
    """What to make of a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: Annotated[str, _one_of(TARGETS)] = DEFAULT_TARGET
    """A name of :data:`compress.targets.table.TARGETS`."""
    weights: Annotated[str, _one_of(METHODS)] = DEFAULT_METHOD
    """How they are rounded: a name of :data:`compress.quantize.methods.METHODS`."""
    group_size: Literal[32, 64, 128] = 64
    """w4a16 alone: how many weights share a scale. In int4-onnx 32 do."""
    head_bits: Literal[4, 8] = 8
    """int4-onnx alone: of the output layer, and of the embedding where the model ties them."""
    high_precision_fraction: float = Field(default=0.0, ge=0, le=1)
    """The share of the layers' weights that are rounded less, those that rounding hurts most: of int4-onnx to 8 bits (a
    tenth by GPTQ), of w8a8 not at all (a quarter at most: fewer where the others are hurt little). Once ``wide_share``."""
    kv_cache: Literal["float32", "int8"] = "float32"
    """int4-onnx and int8-onnx alone: how keys and values of past tokens are kept."""
    scales_from: Literal["fresh", "parent"] = "fresh"
    """int4-onnx and int8-onnx alone. parent: a fine-tuned version is rounded with the scales and the bits of the version
    that it updates, so that devices need few bytes; where there is none of the same target, with its own."""

    @model_validator(mode="before")
    @classmethod
    def _default_high_precision_fraction(cls, said: Any) -> Any:
        if not isinstance(said, Mapping):
            return said
        if "wide_share" in said:
            if "high_precision_fraction" in said:
                raise ValueError(
                    "wide_share is the old name of high_precision_fraction: leave wide_share out"
                )
            warnings.warn_explicit(WIDE_SHARE_RENAMED, FutureWarning, filename="recipe", lineno=1)
            said = renamed(said)
        to, weights = said.get("to", DEFAULT_TARGET), said.get("weights", DEFAULT_METHOD)
        return {"high_precision_fraction": default_high_precision_fraction(str(to), str(weights)), **said}

    @model_validator(mode="after")
    def _fits_together(self) -> PlannedTarget:
        target = TARGETS[self.to]
        if self.weights not in methods_for(self.to):
            makes = " or ".join(METHODS[self.weights].targets)
            raise ValueError(f"weights: {self.weights} makes {makes}, not {self.to}")
        if self.kv_cache == "int8" and not target.int8_cache:
            able = " and ".join(name for name, one in TARGETS.items() if one.int8_cache)
            raise ValueError(f"kv_cache: int8 is for {able}, not {self.to}")
        if self.scales_from == "parent" and not (target.int8_cache and METHODS[self.weights].keeps_scales):
            able = " and ".join(name for name, one in TARGETS.items() if one.int8_cache)
            methods = " or ".join(name for name, one in METHODS.items() if one.keeps_scales)
            raise ValueError(
                f"scales_from: parent is for {able} by {methods}, not {self.to} by {self.weights}"
            )
        if target.high_precision == "bfloat16" and self.high_precision_fraction == 1:
            raise ValueError(
                f"a high_precision_fraction of 1 leaves {self.to} nothing to round; "
                f"{target.high_precision_fraction} is a good choice"
            )
        if self.high_precision_fraction and not target.high_precision:
            able = " and ".join(name for name, one in TARGETS.items() if one.high_precision)
            raise ValueError(f"high_precision_fraction is for {able}; {self.to} rounds all layers alike")
        return self


class CompressRecipe(PlannedTarget):
    """One target. Stored in the bundle it makes as ``recipe["export"]``, beside how the builder did it."""

    calibration: Calibration = Calibration()


class Prune(BaseModel):
    """What to take out: layers, feed-forward columns and attention heads, or single weights.

    ``layers`` stay of all, those missed least; or ``drop`` names the ones to go, from 0. ``ffn``: the columns that
    stay of each feed-forward layer. ``kv_heads``: the heads of keys and values that stay of each attention, with the
    queries' heads that read them. ``sparsity``: the share of zeros in each linear layer, chosen by ``method``;
    pattern ``2:4`` are two zeros in every four neighbours.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int | None = Field(default=None, ge=1)
    drop: tuple[int, ...] = ()
    ffn: int | None = Field(default=None, ge=32)
    kv_heads: int | None = Field(default=None, ge=1)
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    method: Literal["magnitude", "wanda", "sparsegpt"] = "wanda"
    pattern: Literal["any", "2:4"] = "any"

    @model_validator(mode="before")
    @classmethod
    def _two_of_four_is_half(cls, said: Any) -> Any:
        return (
            {"sparsity": 0.5, **said} if isinstance(said, Mapping) and said.get("pattern") == "2:4" else said
        )

    @model_validator(mode="after")
    def _something(self) -> Prune:
        narrower = self.ffn is not None or self.kv_heads is not None
        smaller = self.layers is not None or bool(self.drop) or narrower
        if smaller == (self.sparsity is not None):
            raise ValueError("say what goes: layers, drop, ffn or kv_heads; or else sparsity, for zeros")
        if self.layers is not None and self.drop:
            raise ValueError("say how many layers stay, or which ones to drop, not both")
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise ValueError(f"2:4 is a sparsity of 0.5, not {self.sparsity}")
        return self

    @property
    def layers_alone(self) -> bool:
        """Whether nothing but whole layers goes."""
        return self.ffn is None and self.kv_heads is None and self.sparsity is None


class Teaching(FitOptions):
    """How a teacher's predictions are learnt; see ``compress.distill.decoder_objective.Distillation``."""

    data: PlainData
    temperature: float = Field(default=2, gt=0)
    weight: float = Field(default=0.9, ge=0, le=1)
    divergence: Literal["forward", "reverse", "jensen-shannon"] = "forward"
    hidden: float = Field(default=0.0, ge=0)
    """Of the hidden states' distance from the teacher's; see ``compress.distill.decoder_objective.HiddenStates``, of an encoder
    ``compress.distill.encoder_objective.EmbeddingDistillation``."""
    reconstruct_tokens: int = Field(default=16384, ge=0)
    """A student made of the teacher's layers is solved for on so many first; see ``compress.prune.reconstruct``."""
    quantize_to: Literal["int4-onnx"] | None = None
    """What the student will be rounded to; it learns with its weights so rounded. See ``compress.quantize.quantize_aware``."""
    head_bits: Literal[4, 8] = 8
    """With ``quantize_to``: of the output layer, as the target will have it."""
    keep_predictions: int | None = Field(default=None, ge=1, le=1024)
    """The teacher is asked once, and so many tokens of each position are kept; see ``compress.distill.kept_predictions``."""

    @model_validator(mode="after")
    def _kept_is_enough(self) -> Teaching:
        if self.keep_predictions and self.hidden:
            raise ValueError("hidden is of the teacher's states, which keep_predictions does not keep")
        if self.keep_predictions and self.divergence != "forward":
            raise ValueError(f"keep_predictions is for divergence: forward, not {self.divergence}")
        return self


class CompressPlan(BaseModel):
    """Several targets from one calibration set; first, where asked for, of a pruned and healed model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    calibration: Calibration = Calibration()
    prune: Prune | None = None
    heal: Teaching | None = None
    """Distillation of the pruned, or of the rounded, model from the one it was."""
    target: str | None = None
    """``size<=60MB`` or ``speed>=6x``: what to prune and how many bits to keep is found; see ``compress.search``."""
    targets: tuple[PlannedTarget, ...] = ()

    @model_validator(mode="after")
    def _something_to_do(self) -> CompressPlan:
        if self.target is not None:
            if self.targets or self.prune:
                raise ValueError(
                    "target finds what to prune and how to quantize: leave prune and targets out"
                )
            return self
        if not self.targets and self.prune is None:
            raise ValueError("name at least one of targets, a target, or something to prune")
        if self.heal and self.prune is None and self.heal.quantize_to is None:
            raise ValueError(
                "heal is for a model that lost something: say what to prune, or quantize_to: int4-onnx in heal"
            )
        return self

    def recipes(self) -> list[CompressRecipe]:
        """One recipe per target."""
        return [CompressRecipe(**one.model_dump(), calibration=self.calibration) for one in self.targets]


def read_plan(path: Path, target: str | None = None) -> CompressPlan:
    """Reads a plan, with ``target`` instead of its own; its paths are relative to it.

    Raises ConfigError with line and nearest key.
    """
    file = read_settings_file(path)
    values = {**file.values, "target": target} if target else file.values
    plan = validate_recipe(CompressPlan, values, file)
    folder, chosen = path.absolute().parent, plan.calibration
    sources = {
        name: folder / source.expanduser()
        for name, source in (("text", chosen.text), ("store", chosen.store))
        if source
    }
    heal = plan.heal and plan.heal.model_copy(update={"data": anchored(plan.heal.data, folder)})
    return plan.model_copy(update={"calibration": chosen.model_copy(update=sources), "heal": heal})


def recipe_from(export: Mapping[str, Any]) -> CompressRecipe:
    """The recipe in a bundle's ``recipe["export"]``; what the builder added, and older bundles, are understood."""
    known = {key: value for key, value in renamed(export).items() if key in CompressRecipe.model_fields}
    return CompressRecipe.model_validate(
        {"weights": "rtn", "head_bits": 4, "high_precision_fraction": 0.0, **known}
    )

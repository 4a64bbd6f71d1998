"""What to make of a model, and how: the YAML behind ``everlearn compress --recipe`` and ``recipe`` in a bundle.

One calibration set serves every target of a plan::

    calibration: {text: corpus.txt, tokens: 16384}
    targets:
      - {to: int4-onnx, weights: gptq}
      - {to: w8a8}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from everlearn.settings_file import read_settings_file
from train.recipe import validate_recipe

Target = Literal["int4-onnx", "int8-onnx", "fp32-onnx", "w8a8"]
Weights = Literal["rtn", "gptq"]


class Calibration(BaseModel):
    """Which tokens a quantizer looks at. Without ``text`` and ``store``: the shipped text that is not measured."""

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

    to: Target = "int4-onnx"
    weights: Weights = "rtn"
    """int4-onnx alone: rounded to nearest, or by GPTQ (arXiv 2210.17323)."""
    head_bits: Literal[4, 8] = 8
    """int4-onnx alone: of the output layer, and of the embedding where the model ties them."""
    wide_share: float = Field(default=0.0, ge=0, le=1)
    """int4-onnx alone: how many of the layers' weights stay at 8 bits, those that 4 hurt most. By GPTQ a tenth."""

    @model_validator(mode="before")
    @classmethod
    def _who_takes_minutes_takes_two_more(cls, said: Any) -> Any:
        if isinstance(said, Mapping) and said.get("weights") == "gptq":
            return {"wide_share": 0.1, **said}
        return said

    @model_validator(mode="after")
    def _gptq_is_int4(self) -> PlannedTarget:
        if self.weights == "gptq" and self.to != "int4-onnx":
            raise ValueError(f"weights: gptq makes int4-onnx, not {self.to}")
        return self


class CompressRecipe(PlannedTarget):
    """One target. Stored in the bundle it makes as ``recipe["export"]``, beside how the builder did it."""

    calibration: Calibration = Calibration()


class CompressPlan(BaseModel):
    """Several targets from one calibration set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    calibration: Calibration = Calibration()
    targets: tuple[PlannedTarget, ...] = Field(min_length=1)

    def recipes(self) -> list[CompressRecipe]:
        """One recipe a target."""
        return [CompressRecipe(**one.model_dump(), calibration=self.calibration) for one in self.targets]


def read_plan(path: Path) -> CompressPlan:
    """Reads a plan; its paths are relative to it. Raises ConfigError with line and nearest key."""
    file = read_settings_file(path)
    plan = validate_recipe(CompressPlan, file.values, file)
    folder, chosen = path.absolute().parent, plan.calibration
    anchored = {
        name: folder / source.expanduser()
        for name, source in (("text", chosen.text), ("store", chosen.store))
        if source
    }
    return plan.model_copy(update={"calibration": chosen.model_copy(update=anchored)})


def recipe_from(export: Mapping[str, Any]) -> CompressRecipe:
    """The recipe in a bundle's ``recipe["export"]``; what the builder added, and older bundles, are understood."""
    known = {key: value for key, value in export.items() if key in CompressRecipe.model_fields}
    return CompressRecipe.model_validate({"weights": "rtn", "head_bits": 4, "wide_share": 0.0, **known})

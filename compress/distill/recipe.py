"""The distillation recipe: the YAML behind ``everlearn distill``."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from compress.recipe import Teaching
from everlearn.errors import InvalidInput
from everlearn.settings_file import read_settings_file
from train.models.architecture import Architecture
from train.recipe import validate_recipe
from train.recipe_data import anchored


class Student(BaseModel):
    """Some of the teacher's own layers, another model here with its tokenizer, or an architecture from scratch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: int | None = Field(default=None, ge=1)
    model: str | None = None
    architecture: Architecture | None = None

    @model_validator(mode="after")
    def _one(self) -> Student:
        if sum(one is not None for one in (self.layers, self.model, self.architecture)) != 1:
            raise ValueError(
                "say one of layers, of the teacher's; model, one that is here; or architecture, from scratch"
            )
        if self.architecture and self.architecture.of.task != "generate":
            raise ValueError(
                f"architecture.family: {self.architecture.family} is no decoder, and a student is one"
            )
        return self


class DistillRecipe(Teaching):
    """``teacher`` is a model here."""

    name: str
    teacher: str
    student: Student


def read_distill_recipe(path: Path) -> DistillRecipe:
    """The recipe of a YAML file; its paths are relative to it. Raises ConfigError with line and nearest key."""
    file = read_settings_file(path)
    recipe = validate_recipe(DistillRecipe, file.values, file)
    return recipe.model_copy(update={"data": anchored(recipe.data, path.absolute().parent)})


OF_DECODERS = ("temperature", "weight", "divergence", "quantize_to", "head_bits", "keep_predictions")
OF_TEACHING = ("student", "hidden", "reconstruct_tokens", *OF_DECODERS)
"""What of a recipe decides a run beside the options of its loop."""


def refuse_decoders_options(recipe: DistillRecipe, teacher: str) -> None:
    """Raises InvalidInput for what is said of predictions where an encoder teaches."""
    if recipe.student.architecture is not None:
        raise InvalidInput(
            f"{teacher} is an encoder: its student has some of its layers, or is a model here",
            param="student.architecture",
        )
    for name in OF_DECODERS:
        if getattr(recipe, name) != Teaching.model_fields[name].default:
            raise InvalidInput(
                f"{name} is of predictions, and {teacher} is an encoder: it teaches its embeddings, and by hidden its "
                "last states",
                param=name,
            )

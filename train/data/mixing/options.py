"""What a recipe says of a mixture, under ``data``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from everlearn.suggest import did_you_mean
from train.data.options import RemoteUrl

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Weight = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
MAX_COMPONENTS = 1000


class Component(BaseModel):
    """Files that are learnt from in one share. ``weight``: of its rows beside those of the others, whatever their sizes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train: tuple[RemoteUrl | Path, ...] = ()
    weight: Weight = 1.0

    @field_validator("train", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value


class Stage(BaseModel):
    """Other weights, from when ``from_step`` optimizer steps are done."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_step: Annotated[int, Field(ge=1, le=10**9)]
    weights: dict[str, Weight]


Stages = tuple[tuple[int, tuple[float, ...]], ...]
"""From which step, and the weight of each component; the first one is from step 0."""


def stages(mixture: Mapping[str, Component], curriculum: Sequence[Stage]) -> Stages:
    """The weights of the whole run. Raises ValueError where they leave a component, or all, out."""
    names = list(mixture)
    if len(names) > MAX_COMPONENTS:
        raise ValueError(f"mixture has {len(names)} components; at most {MAX_COMPONENTS} would do")
    found = [(0, tuple(each.weight for each in mixture.values()))]
    for number, stage in enumerate(curriculum):
        where = f"curriculum[{number}]"
        if unknown := [name for name in stage.weights if name not in mixture]:
            raise ValueError(f"{where} has weights of {unknown[0]!r}, {_known(unknown[0], names)}")
        if missing := [name for name in names if name not in stage.weights]:
            raise ValueError(f"{where} lacks the weight of {missing[0]!r}: 0 would leave it out")
        if stage.from_step <= found[-1][0]:
            raise ValueError(f"{where} begins at step {stage.from_step}, not after the stage before it")
        found.append((stage.from_step, tuple(stage.weights[name] for name in names)))
    for step, weights in found:
        if not any(weights):
            raise ValueError(f"all weights from step {step} on are 0")
    for name, of_stages in zip(names, zip(*(weights for _, weights in found), strict=True), strict=True):
        if not any(of_stages):
            raise ValueError(f"the weight of {name!r} is 0 throughout: leave it out of mixture")
    return tuple(found)


def _known(name: str, names: list[str]) -> str:
    return f"which mixture does not have; it has {', '.join(names[:8])}{did_you_mean(name, names)}"

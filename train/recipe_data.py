"""What a recipe says under ``data``: files to prepare, or stores already prepared, and how they are mixed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, field_validator, model_validator

from everlearn.errors import ConfigError
from train.data.mixing.options import Component, Name, Stage, Stages, stages
from train.data.options import DataOptions, RemoteUrl

Files = Sequence[RemoteUrl | Path] | Mapping[str, Sequence[RemoteUrl | Path]]
"""To learn from; a mapping has the components of a mixture."""


class PlainData(DataOptions):
    """Files to prepare (``train``, ``held``), or stores already prepared (``store``, ``held_store``).

    Without ``held`` files, ``held_fraction`` of the documents are held out. ``max_tokens`` is by default the
    recipe's ``sequence_tokens``.
    """

    train: tuple[RemoteUrl | Path, ...] = ()
    held: tuple[RemoteUrl | Path, ...] = ()
    max_tokens: int | None = Field(default=None, ge=2)  # type: ignore[assignment]
    store: Path | None = None
    held_store: Path | None = None

    @property
    def files(self) -> Files:
        """What there is to prepare."""
        return self.train

    @property
    def places(self) -> tuple[RemoteUrl | Path, ...]:
        """Where all files lie, those to measure on too."""
        files = self.files
        given = files.values() if isinstance(files, Mapping) else (files,)
        return (*(each for some in given for each in some), *self.held)

    @field_validator("train", "held", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _one_source(self) -> PlainData:
        if bool(self.train) == bool(self.store):
            raise ValueError("give either train (files to prepare) or store (a folder that was prepared)")
        return self


class Data(PlainData):
    """Or a mixture of components by name: with files, or without, of a store that was prepared so.

    ``curriculum``: other weights from a step on; see ``train.data.mixing``.
    """

    mixture: dict[Name, Component] | None = Field(default=None, min_length=1)
    curriculum: tuple[Stage, ...] | None = None

    @property
    def files(self) -> Files:
        if not self.mixture or self.store:
            return self.train
        return {name: component.train for name, component in self.mixture.items()}

    @property
    def stages(self) -> Stages:
        """The weights of the run."""
        return stages(self.mixture or {}, self.curriculum or ())

    @model_validator(mode="after")
    def _one_source(self) -> Data:
        with_files = [name for name, component in (self.mixture or {}).items() if component.train]
        if bool(self.train) + bool(self.store) + bool(with_files) != 1:
            raise ValueError(
                "give either train (files to prepare), or such files by component in mixture, or store (a folder that "
                "was prepared)"
            )
        if self.train and self.mixture:
            raise ValueError("train has files, and mixture has none: give each component its own")
        if with_files and (without := [name for name in self.mixture or {} if name not in with_files]):
            raise ValueError(f"mixture.{without[0]} has no files to train on: name them under train")
        if self.curriculum and not self.mixture:
            raise ValueError("curriculum changes the weights of a mixture, and there is none")
        if self.mixture:
            _ = self.stages
        return self


def anchored_path(path: Path, folder: Path) -> Path:
    """Relative to ``folder``. Raises ConfigError for another user's folder that is not there."""
    try:
        return folder / path.expanduser()
    except RuntimeError:
        raise ConfigError(f"{path}: there is no such user's folder", param="data") from None


def anchored_model(path: Path, folder: Path) -> Path:
    """As :func:`anchored_path`; but a single word that is no folder there stays, as the name of a model."""
    there = anchored_path(path, folder)
    return path if path.name == str(path) and not there.is_dir() else there


SomeData = TypeVar("SomeData", bound=PlainData)


def anchored(data: SomeData, folder: Path) -> SomeData:
    """``data`` with its paths relative to ``folder``."""

    at = partial(anchored_path, folder=folder)

    def all_at(paths: Sequence[RemoteUrl | Path]) -> tuple[RemoteUrl | Path, ...]:
        return tuple(path if isinstance(path, str) else at(path) for path in paths)

    mixture = getattr(data, "mixture", None) or {}
    mixed = {name: each.model_copy(update={"train": all_at(each.train)}) for name, each in mixture.items()}
    return data.model_copy(
        update={
            **({"mixture": mixed} if mixed else {}),
            "train": all_at(data.train),
            "held": all_at(data.held),
            "store": data.store and at(data.store),
            "held_store": data.held_store and at(data.held_store),
            **data.with_files(at, partial(anchored_model, folder=folder)),
        }
    )


def with_models(data: SomeData, find: Callable[[str], Path]) -> SomeData:
    """``data`` with the folder of each model that it names; ``find`` has it by its name."""

    return data.model_copy(update=data.with_models(partial(folder_of, find=find)))


def folder_of(model: Path, find: Callable[[str], Path]) -> Path:
    """``model``, where it is a path; the folder of the model of that name, where it is one word."""
    return find(str(model)) if model.name == str(model) and not model.is_dir() else model

"""Checkpoints a kill at any moment cannot spoil, and any number of ranks can read.

Tensors go through torch.distributed.checkpoint into a folder beside; state.json says what they are and the sha256
of every file; the name appears last, by one rename. Training is a function of (recipe, step, tensors), so nothing
else has to be kept.
"""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog
from torch import Tensor, nn
from torch.optim import Optimizer

from everlearn.bundles.bundle import file_entry
from everlearn.bundles.durable import move_directory, sync_tree, write_file
from everlearn.errors import Unavailable
from train.parallel.group import Group
from train.runs.full_disk import why_not_written

log = structlog.stdlib.get_logger("train.checkpoint")

STATE = "state.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint whose every byte is as it was written."""

    path: Path
    step: int
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run, in ``folder``; the newest ``keep`` stay."""

    def __init__(self, folder: Path, keep: int, group: Group) -> None:
        self.folder = folder
        self.keep = keep
        self.group = group

    def save(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Every rank calls it with its share. Returns when the checkpoint is durable."""
        target = self.folder / f"step-{step:08d}"
        partial = self.folder / f".partial-{step:08d}"
        if self.group.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(target, ignore_errors=True)
            partial.mkdir()
        self.group.barrier()
        try:
            _quietly("save", tensors, checkpoint_id=partial, no_dist=self.group.kind == "none")
            if self.group.is_first:
                self._name(partial, target, {**state, "step": step, "ranks": self.group.ranks})
        except BaseException:  # a full disk gets its room back
            shutil.rmtree(partial, ignore_errors=True)
            raise
        self.group.barrier()

    def newest(self) -> Saved | None:
        """The newest checkpoint that is whole; the others are cleared away."""
        found = self._newest() if self.group.is_first else None
        return self.group.share(found)

    def load(self, saved: Saved, tensors: dict[str, Tensor]) -> None:
        """Fills ``tensors`` in place, however many ranks saved them."""
        _quietly("load", tensors, checkpoint_id=saved.path, no_dist=self.group.kind == "none")

    def clear(self) -> None:
        """For a run whose model is written."""
        self.group.barrier()
        if self.group.is_first:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _name(self, partial: Path, target: Path, state: dict[str, Any]) -> None:
        """Makes what lies in ``partial`` a checkpoint, and drops the oldest."""
        files = {file.name: file_entry(file).model_dump() for file in sorted(partial.iterdir())}
        sync_tree(partial)
        write_file(partial / STATE, json.dumps({**state, "files": files}, indent=1).encode())
        move_directory(partial, target)
        for old in self._names()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def _newest(self) -> Saved | None:
        for partial in self.folder.glob(".partial-*"):
            shutil.rmtree(partial, ignore_errors=True)
        for path in reversed(self._names()):
            state = _read(path)
            if state is not None:
                return Saved(path, int(state["step"]), state)
            log.warning("checkpoint ignored: it is not what was written", path=str(path))
            shutil.rmtree(path, ignore_errors=True)
        return None

    def _names(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def tensors_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """What training changes, by name: trained parameters, buffers, and the optimizer's state of each."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    persistent = model.state_dict(keep_vars=True)
    tensors: dict[str, Tensor] = {f"model.{name}": parameter.detach() for name, parameter in named.items()}
    tensors |= {f"model.{name}": buffer for name, buffer in model.named_buffers() if name in persistent}
    for name, parameter in named.items():
        for part, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{part}.{name}"] = value
    return tensors


def _read(path: Path) -> dict[str, Any] | None:
    try:
        state = json.loads((path / STATE).read_bytes())
        files = state["files"]
        present = {file.name for file in path.iterdir()} - {STATE}
        sound = present == set(files) and all(
            file_entry(path / name).model_dump() == entry for name, entry in files.items()
        )
        return state if sound else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _quietly(call: Literal["save", "load"], tensors: dict[str, Tensor], **options: Any) -> None:
    """Without the warnings that one process alone has no group. Imported here: it takes seconds.

    Raises Unavailable with what the disk said.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            getattr(dcp, call)(tensors, **options)
        except CheckpointException as error:
            cause, _ = next(iter(error.failures.values()))
            if call == "load":
                raise Unavailable(f"a checkpoint could not be read: {cause}") from error
            size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            why = why_not_written(cause, options["checkpoint_id"], size)
            raise Unavailable(f"a checkpoint could not be written: {why}") from error

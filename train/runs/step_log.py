"""The log of steps: a line of ``steps.jsonl`` each, and TensorBoard's events where asked for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from everlearn.bundles.durable import write_file
from everlearn.errors import Unavailable
from train.report import StepReport

SCALARS = ("loss", "lr", "grad_norm", "tokens_per_s", "held_nll")


class StepLog:
    """One writer per run. Raises Unavailable if TensorBoard was asked for and is not installed."""

    def __init__(self, run_dir: Path, kind: Literal["tensorboard", "none"]) -> None:
        self.path = run_dir / "steps.jsonl"
        self._board = _board(run_dir / "tensorboard") if kind == "tensorboard" else None

    def begin(self, step: int) -> None:
        """Goes on after ``step``; what a killed run had written beyond its checkpoint is dropped."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path, "".join(line for line in self._lines() if _step(line) <= step).encode())
        self._file = self.path.open("a", buffering=1)

    def write(self, report: StepReport) -> None:
        said = dataclasses.asdict(report)
        self._file.write(json.dumps(said) + "\n")
        if self._board:
            for name in SCALARS:
                if said[name] is not None:
                    self._board.add_scalar(name, said[name], report.step)

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()

    def _lines(self) -> list[str]:
        try:
            return self.path.read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"] if line.endswith("\n") else float("inf")
    except ValueError:
        return float("inf")


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise Unavailable("log: tensorboard needs the package tensorboard: pip install tensorboard") from None
    return SummaryWriter(str(folder))

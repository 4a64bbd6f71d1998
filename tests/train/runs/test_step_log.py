"""The log of steps: one line each, none twice after a kill, and TensorBoard's events."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from everlearn.errors import Unavailable
from train.report import StepReport
from train.runs.step_log import StepLog


def report(step: int) -> StepReport:
    return StepReport(step, 9, 1.5, 0.1, 0.2, 100 * step, 50.0, 3.0)


def test_log_lines_that_a_killed_run_wrote_beyond_its_checkpoint_are_dropped(tmp_path: Path) -> None:
    log = StepLog(tmp_path, "none")
    log.begin(0)
    for step in range(1, 6):
        log.write(report(step))
    log.close()
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 6, "loss"')  # torn
    log = StepLog(tmp_path, "none")
    log.begin(3)
    log.write(report(4))
    log.close()
    steps = [json.loads(line)["step"] for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_tensorboard_gets_the_loss(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log = StepLog(tmp_path, "tensorboard")
    log.begin(0)
    log.write(report(1))
    log.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.5)]


def test_tensorboard_that_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(Unavailable, match="pip install tensorboard"):
        StepLog(tmp_path, "tensorboard")

"""A job's steps: made once, whole or not there, and made again when what they left was damaged."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from continual.queue.steps import Steps


def test_a_finished_step_is_taken_as_it_is(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(directory: Path) -> dict:
        made.append(directory)
        (directory / "below").mkdir()
        (directory / "below" / "file").write_text("x")
        return {"n": 1}

    first = Steps(tmp_path / "job").do("data", make)
    again = Steps(tmp_path / "job").do("data", make)
    assert first == again and len(made) == 1
    assert (again.directory / "below" / "file").read_text() == "x" and again.result == {"n": 1}


@pytest.mark.parametrize("damage", ["change", "remove", "add", "marker"])
def test_a_damaged_step_is_made_again(tmp_path: Path, damage: str) -> None:
    def make(directory: Path) -> dict:
        (directory / "file").write_text("right")
        return {}

    steps = Steps(tmp_path)
    directory = steps.do("data", make).directory
    if damage == "change":
        (directory / "file").write_text("wrong")
    elif damage == "remove":
        (directory / "file").unlink()
    elif damage == "add":
        (directory / "more").write_text("x")
    else:
        (directory / "done.json").write_text("{")
    assert steps.find("data") is None
    steps.do("data", make)
    assert [path.name for path in sorted(directory.iterdir())] == ["done.json", "file"]
    assert (directory / "file").read_text() == "right"


def test_files_that_a_failed_step_left_are_not_seen(tmp_path: Path) -> None:
    def fail(directory: Path) -> dict:
        (directory / "half").write_text("x")
        raise OSError(errno.ENOSPC, "no space left on device")

    steps = Steps(tmp_path)
    with pytest.raises(OSError, match="no space"):
        steps.do("data", fail)
    assert steps.find("data") is None
    directory = steps.do("data", lambda directory: {}).directory
    assert [path.name for path in directory.iterdir()] == ["done.json"]

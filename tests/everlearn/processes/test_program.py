"""What children of this program are started with, and what is told of one that died."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from everlearn.processes.program import (
    TAIL_BYTES,
    TAIL_CHARS,
    describe_death,
    describe_exit,
    environment,
    log_tail,
    python,
)

REPOSITORY = Path(__file__).resolve().parents[3]


def test_a_child_imports_what_its_parent_imports_and_nothing_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for folder in (there, here):
        folder.mkdir()
    (there / "brought.py").write_text("import everlearn, os; print(everlearn.__file__, os.environ['ADDED'])")
    (here / "everlearn.py").write_text("raise SystemExit('the working directory was imported')")
    monkeypatch.syspath_prepend(there)
    done = subprocess.run(
        python("brought"), cwd=here, env=environment(ADDED="1"), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(REPOSITORY / "everlearn" / "__init__.py"), "1"]


def test_a_child_finds_this_program_where_its_parent_found_it_by_other_means_than_a_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path and Path(path) != REPOSITORY])
    assert environment()["PYTHONPATH"].split(os.pathsep)[0] == str(REPOSITORY)


def test_the_end_of_a_long_log_is_told_with_progress_bars_as_lines() -> None:
    log = io.BytesIO(b"\xff" * TAIL_BYTES + "".join(f"\r{n}%" for n in range(10_000)).encode() + b"\nlast\n")
    tail = log_tail(log)
    assert len(tail) == TAIL_CHARS and tail.endswith("9998%\n9999%\nlast") and "\r" not in tail


def test_an_exit_is_described_by_its_code_or_its_signal() -> None:
    assert describe_exit(3) == "exited with code 3"
    assert describe_exit(-signal.SIGSEGV) == "was killed by SIGSEGV"
    assert describe_exit(-signal.SIGKILL) == "was killed by SIGKILL (out of memory?)"


def test_a_death_is_described_with_the_log_where_there_is_one() -> None:
    assert describe_death("x", 1, io.BytesIO()) == "x exited with code 1"
    assert describe_death("x", 1, io.BytesIO(b"why\n")) == "x exited with code 1; the end of its log:\nwhy"

"""The most a process has held, and what a container's limit leaves of the machine's memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from everlearn import memory
from everlearn.memory import peak_bytes, within_container

MB = 1_000_000
SAY = "from everlearn.memory import peak_bytes; print(peak_bytes())"


def test_the_peak_counts_memory_that_was_freed_since() -> None:
    held = bytearray(b"x") * (200 * MB)
    assert len(held) == 200 * MB
    del held
    assert peak_bytes() > 200 * MB


def test_a_child_does_not_count_what_its_parent_held() -> None:
    held = bytearray(b"x") * (400 * MB)
    said = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True)
    assert len(held) > 100 * MB > int(said.stdout)


@pytest.mark.parametrize(
    ("limit", "used", "idle", "left"),
    [
        (1000, 400, 0, 600),
        (1000, 400, 150, 750),
        (1000, 1200, 0, 0),
        (9000, 400, 0, 5000),
        ("max", 400, 0, 5000),
    ],
)
def test_a_containers_limit_counts_with_what_is_used_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | str, used: int, idle: int, left: int
) -> None:
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text(f"anon 7\nfile 9\ninactive_file {idle}\nactive_file 3\n")
    assert within_container(5000) == left


def test_outside_of_containers_all_that_is_available_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CONTAINER", tmp_path)
    assert within_container(5000) == 5000

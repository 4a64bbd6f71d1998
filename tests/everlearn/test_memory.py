"""The most a process has held."""

import subprocess
import sys

from everlearn.memory import peak_bytes

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

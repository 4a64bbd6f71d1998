"""A folder for a Raspberry Pi on an emulated Cortex-A72: no illegal instruction, and the same numbers."""

import os
import shutil
from pathlib import Path

import pytest

from deploy.edge.build import build
from deploy.edge.check.check import check
from everlearn.settings import Settings
from tests.conftest import TEST_HOME
from tests.machine.arm64 import NotFetched, arm64_root


def test_a_folder_computes_the_same_on_arm64(tiny: Settings, tmp_path: Path) -> None:
    if not shutil.which("qemu-aarch64-static"):
        pytest.skip("qemu-user-static is not installed")
    try:
        made = arm64_root(TEST_HOME / "arm64")
    except NotFetched as why:
        pytest.skip(str(why))
    root = tmp_path / "root"
    root.mkdir()
    for one in made.iterdir():
        os.symlink(one, root / one.name)
    made_for = build(tiny, "decoder@1", "linux-arm64", tmp_path / "folder")
    assert made_for.memory_is == "estimated"
    found = check(tiny, tmp_path / "folder", arm64=root)
    (session,) = found.sessions
    assert "Cortex-A72" in session.on and not session.is_device and found.skipped == []
    assert session.difference < made_for.bound

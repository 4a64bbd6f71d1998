"""The systemd unit, as systemd reads it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.deploy.native.conftest import RUNNER

UNIT = REPOSITORY / "deploy" / "edge" / "native" / "systemd" / "everlearn-runner.service"
MOST_EXPOSED = 20  # of 100: systemd's own services have 10 to 90


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """With a program that is there: systemd asks for it."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/everlearn/runner", "/bin/true"))
    return copy


def test_systemd_finds_nothing_wrong_and_little_exposed(unit: Path) -> None:
    made = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (made.returncode, made.stderr) == (0, "")
    made = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=yes",
            "--no-pager",
            f"--threshold={MOST_EXPOSED}",
            str(unit),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout[-500:]


def test_it_starts_the_runner_with_options_that_there_are() -> None:
    (command,) = re.findall(r"^ExecStart=(.+)$", UNIT.read_text(), re.MULTILINE)
    options = re.findall(r"--[a-z-]+", UNIT.read_text().replace("…", ""))
    said = subprocess.run(
        [*RUNNER, "--help"], capture_output=True, text=True, check=True, cwd=REPOSITORY
    ).stdout
    assert {"--port", "--key-file"} <= set(options) and all(one in said for one in options)
    assert command.split()[1] == "/srv/everlearn/model"

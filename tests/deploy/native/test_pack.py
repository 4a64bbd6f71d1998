"""The runner as one file: in roots that hold it, a model, and Debian's Python alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.edge.native.pack import PINS, pack
from everlearn.errors import Conflict
from tests.deploy.native.conftest import running
from tests.deploy.native.roots import root_for
from tests.deploy.native.runner_requirements import pinned

MAX_BYTES = 150e6
PROMPTS = ("the cat", "Once upon a time", "def add(a, b):")


def test_its_pins_are_the_lock_s() -> None:
    assert PINS.read_text() == pinned(), "run python -m tests.deploy.native.runner_requirements"


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "runner").write_text("mine")
    with pytest.raises(Conflict, match="is there already: remove it, or name another file"):
        pack("linux-x64", "3.11", tmp_path / "runner")
    assert (tmp_path / "runner").read_text() == "mine"


@pytest.fixture(scope="module")
def text_here(decoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return greedy(decoder_folder, tmp_path_factory.mktemp("here") / "log")


def greedy(folder: Path | str, log: Path, **how: tuple[str, ...]) -> list[str]:
    """What a runner answers to each prompt."""
    with running(folder, "--threads", 1, log=log, **how) as runner:
        found = []
        for prompt in PROMPTS:
            body = {"model": "decoder", "prompt": prompt, "temperature": 0, "max_tokens": 6}
            answer = runner.client.post("/completions", json=body, timeout=300)
            found.append(answer.raise_for_status().json()["choices"][0]["text"])
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("platform", "architecture"), [("linux-x64", "amd64"), ("linux-arm64", "arm64")])
def test_from_an_empty_root_it_answers_the_same_greedy_text(
    platform: str, architecture: str, decoder_folder: Path, text_here: list[str], tmp_path: Path
) -> None:
    size_bytes = pack(platform, "3.11", tmp_path / "runner")
    assert size_bytes == (tmp_path / "runner").stat().st_size < MAX_BYTES
    command = root_for(architecture, tmp_path / "runner", decoder_folder, tmp_path / "root")
    assert greedy("/model", tmp_path / "log", command=command) == text_here

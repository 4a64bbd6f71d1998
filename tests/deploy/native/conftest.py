"""Edge folders of tiny models, and runners that serve them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deploy.edge.build import build
from everlearn.settings import Settings
from tests.conftest import REPOSITORY
from tests.deploy.edge.models import register_decoder, register_encoder

RUNNER = (sys.executable, "-m", "deploy.edge.native")
READY_S = 300


@dataclass
class Running:
    """A runner that serves."""

    process: subprocess.Popen[str]
    client: httpx.Client
    log: Path

    def said(self, event: str) -> list[dict[str, Any]]:
        """What it has logged under that name."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]


@contextmanager
def running(*options: object, command: tuple[str, ...] = RUNNER, log: Path, **env: str) -> Iterator[Running]:
    """A runner with ``options`` on a free port, from its being ready until it has been told to end."""
    with (
        log.open("w") as output,
        started(*options, "--port", 0, command=command, output=output, **env) as process,
    ):
        found = Running(process, httpx.Client(timeout=60), log)
        deadline_s = READY_S
        while not (ready := found.said("ready")):
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
            deadline_s -= 0.1
            assert process.poll() is None and deadline_s > 0, log.read_text()[-3000:]
        found.client.base_url = ready[0]["url"]
        with found.client:
            yield found


@contextmanager
def started(*options: object, command: tuple[str, ...] = RUNNER, output: Any, **env: str) -> Iterator[Any]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("EVERLEARN_")}
    process = subprocess.Popen(
        [*command, *map(str, options)],
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
        env={**inherited, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **env},
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def refused(*options: object, **env: str) -> tuple[int, str]:
    """Exit code and last line of a runner that does not start."""
    with started(*options, output=subprocess.PIPE, **env) as process:
        said, _ = process.communicate(timeout=READY_S)
    return process.returncode, said.strip().splitlines()[-1]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Versions to make folders of: a tiny decoder of 4 bits, and a tiny encoder of 8."""
    folder = tmp_path_factory.mktemp("native")
    settings = Settings(home=folder / "home")
    register_decoder(settings, folder / "decoder")
    register_encoder(settings, folder / "encoder")
    return settings


@pytest.fixture(scope="session")
def decoder_folder(home: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the decoder, for this kind of machine."""
    out = tmp_path_factory.mktemp("linux") / "decoder"
    build(home, "decoder", "linux-x64", out)
    return out


@pytest.fixture(scope="session")
def encoder_folder(home: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the encoder."""
    out = tmp_path_factory.mktemp("linux") / "encoder"
    build(home, "encoder", "linux-x64", out)
    return out


def changed(source: Path, copy: Path, **fields: Any) -> Path:
    """A copy whose edge.json says ``fields`` instead."""
    shutil.copytree(source, copy)
    said = json.loads((copy / "edge.json").read_text())
    (copy / "edge.json").write_text(json.dumps({**said, **fields}))
    return copy

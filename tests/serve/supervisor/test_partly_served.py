"""What cannot be prepared is told, and the rest is served: real processes, the tests' small engine, real refusals."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from everlearn.settings import Settings
from tests.support.serve.supervised import Supervised, add_model, eventually, fails, supervised

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models: one that serves, and one whose tensors are none, so that compressing it fails."""
    settings = Settings(home=tmp_path_factory.mktemp("partly") / "home")
    add_model(settings, "tiny")
    add_model(settings, "broken", format="safetensors")
    return settings.home


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[Supervised]:
    """Asked for both, and for a third that there is not."""
    with supervised(home, "broken", "tiny", "smolm2") as running:
        yield running.ready(within_s=120)


def ps(home: Path, *options: str) -> str:
    command = [sys.executable, "-m", "everlearn", "ps", *options]
    environment = os.environ | {"EVERLEARN_HOME": str(home), "COLUMNS": "300"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_the_rest_is_served(server: Supervised) -> None:
    assert server.answers("tiny")
    assert [model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]] == ["tiny"]


def test_the_terminal_tells_what_is_not_served_and_why(server: Supervised) -> None:
    told = [line for line in server.output.splitlines() if line.strip().startswith("not served")]
    assert any("broken" in line and "compress broken@1 --to int4-onnx` failed: " in line for line in told)
    assert any("smolm2" in line and "smollm2" in line for line in told)  # with what there is
    assert "Traceback" not in server.output


def test_ps_tells_each_with_its_reason(server: Supervised, home: Path) -> None:
    rows = {row["ref"]: row for row in json.loads(ps(home, "--json"))}
    assert {ref: row["state"] for ref, row in rows.items()} == {
        "tiny@1": "ready", "broken@1": "failed", "smolm2": "failed",
    }  # fmt: skip
    assert "failed: " in rows["broken@1"]["error"]
    assert rows["smolm2"]["version"] is None
    assert "smolm2" in ps(home) and "smolm2@" not in ps(home)


def test_ready_is_200_and_names_them_without_the_reasons(server: Supervised) -> None:
    ready = httpx.get(f"{server.url}/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "failed": ["broken", "smolm2"]})


def test_the_console_shows_them(server: Supervised) -> None:
    engines = httpx.get(f"{server.url}/console/state").json()["engines"]["rows"]
    shown = {(engine["model"], engine["version"]): engine for engine in engines}
    assert shown["broken", 1]["state"] == shown["smolm2", None]["state"] == "failed"
    assert "failed: " in shown["broken", 1]["error"]


def test_who_asks_for_one_hears_that_waiting_is_of_no_use(server: Supervised) -> None:
    refused = server.ask("hello", "broken")
    assert refused.status_code == 503
    assert "everlearn ps" in refused.json()["error"]["message"]


@pytest.fixture
def another_home(settings: Settings) -> Path:
    add_model(settings, "tiny")
    for name in ("broken", "broken-too", "broken-as-well"):
        add_model(settings, name, format="safetensors")
    return settings.home


def test_nothing_is_left_behind_at_the_end(another_home: Path) -> None:
    with supervised(another_home, "tiny", "smolm2") as running:
        running.ready()
        assert running.end() == 0
    assert json.loads(ps(another_home, "--json")) == []
    assert list((another_home / "tmp").glob("reason-*")) == []


def test_where_nothing_can_be_served_it_ends_with_every_reason(another_home: Path) -> None:
    output = fails(another_home, "broken", "smolm2")
    assert "nothing can be served" in output
    assert "compress broken@1" in output and "smolm2" in output


def test_what_is_ready_serves_while_others_are_being_prepared(another_home: Path) -> None:
    with supervised(another_home, "broken", "broken-too", "broken-as-well", "tiny") as running:
        eventually(lambda: running.answers("tiny"))
        assert "broken-as-well@1" not in running.output
        running.ready()
        assert running.output.count("not served") >= 3

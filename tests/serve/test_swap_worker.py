"""The server keeps the worker that trains running, and serves whatever becomes of it."""

from pathlib import Path

import psutil
import pytest

from everlearn.settings import Settings
from tests.serve.supervised import add_model, eventually, supervised

pytestmark = pytest.mark.slow


@pytest.fixture
def home(settings: Settings) -> Path:
    add_model(settings, "tiny")
    return settings.home


def test_a_killed_worker_is_started_again_and_ends_with_the_server(home: Path) -> None:
    with supervised(home, "tiny", EVERLEARN_CONTINUAL__WORKER="on") as server:  # type: ignore[arg-type]
        server.ready()
        before = server.child("continual.worker")
        before.kill()
        eventually(lambda: server.child("continual.worker").pid != before.pid)
        eventually(lambda: "worker ended" in server.output)
        assert server.answers()
        children = server.family.children(recursive=True)
        assert server.end(within_s=60) == 0
        _, alive = psutil.wait_procs(children, timeout=10)
        assert not alive


def test_a_server_that_shall_not_train_has_no_worker(home: Path) -> None:
    with supervised(home, "tiny", EVERLEARN_CONTINUAL__WORKER="off") as server:  # type: ignore[arg-type]
        server.ready()
        assert not server.children("continual.worker")

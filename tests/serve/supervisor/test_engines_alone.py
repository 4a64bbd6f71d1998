"""Engines without a gateway, as in a container: a gateway that is started elsewhere finds them."""

import subprocess
import sys
from pathlib import Path

import pytest

from everlearn.settings import Settings
from tests.support.serve.supervised import add_model, eventually, free_port, supervised

pytestmark = pytest.mark.slow


def health(where: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "everlearn", "health", str(where)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_gateway_started_elsewhere_serves_what_a_supervisor_without_one_runs(settings: Settings) -> None:
    add_model(settings, "tiny")
    socket = settings.home.parent / "health.sock"
    alone = {"EVERLEARN_SERVE__GATEWAYS": "0", "HEALTH_SOCKET": str(socket)}
    with supervised(settings.home, "tiny", **alone) as server:  # type: ignore[arg-type]
        eventually(lambda: "the engines run, for gateways that run elsewhere" in server.output, within_s=90)
        assert not server.children("serve.gateway") and "playground" not in server.output
        well = health(socket)
        assert (well.returncode, '"serving": ["tiny@1"]' in well.stdout) == (0, True), well.stderr
        command = [sys.executable, "-m", "serve.gateway"]
        gateway = subprocess.Popen(command, env=server.environment, stderr=subprocess.DEVNULL)
        try:
            eventually(server.answers, within_s=60)
            assert health(server.url).returncode == 0
            server.child("fake_engine").kill()
            eventually(server.answers, within_s=60)
        finally:
            gateway.terminate()
            assert gateway.wait(30) == 0
        assert server.end() == 0
    ended = health(socket)
    assert ended.returncode == 1 and f"{socket} does not answer" in ended.stderr


@pytest.mark.parametrize("where", ["nowhere.sock", "http://127.0.0.1:{port}", "http://[", "/"])
def test_whatever_does_not_answer_is_not_well(tmp_path: Path, where: str) -> None:
    said = health(where.format(port=free_port()))
    assert said.returncode == 1 and "does not answer" in said.stderr and "Traceback" not in said.stderr

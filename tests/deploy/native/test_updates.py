"""The runner of a device that follows a channel: its own commands update it, and it serves what came."""

from __future__ import annotations

import subprocess
from pathlib import Path

from deploy.updates.keys import Keys
from deploy.updates.publisher import init, opened
from tests.conftest import REPOSITORY
from tests.deploy.native.conftest import RUNNER, changed, refused, running
from tests.deploy.updates.conftest import served
from tests.support.serve.supervised import eventually


def test_an_update_reaches_the_running_runner_and_so_does_a_rollback(
    decoder_folder: Path, tmp_path: Path
) -> None:
    channel, device = tmp_path / "channel", tmp_path / "device"
    keys = Keys(tmp_path / "keys", channel)
    init(channel, keys)
    publish(channel, keys, decoder_folder)
    code, said = refused(device)
    assert code == 1 and said.endswith("is not a folder; everlearn deploy edge makes one")
    with served(channel) as url:
        root = channel / "metadata" / "1.root.json"
        do("init", device, "--root", root, "--url", url, "--model", "decoder", "--target", "linux-x64")
        code, said = refused(device)
        assert code == 1 and said == f"{device} has no version yet: run an update"
        assert "version 1 (champion): updated by" in do("update", device)
        with running(device, "--threads", 1, log=tmp_path / "log") as runner:
            publish(channel, keys, changed(decoder_folder, tmp_path / "2", version=2))
            assert "version 2 (champion): updated by" in do("update", device)
            eventually(lambda: versions(runner.said("serving")) == ["decoder@1", "decoder@2"])
            do("rollback", device)
            eventually(lambda: versions(runner.said("serving")) == ["decoder@1", "decoder@2", "decoder@1"])


def publish(channel: Path, keys: Keys, folder: Path) -> None:
    with opened(channel, keys) as publisher:
        publisher.publish(folder)


def do(*arguments: object) -> str:
    command = [*RUNNER, *map(str, arguments)]
    made = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert made.returncode == 0, made.stderr
    return made.stdout


def versions(said: list[dict[str, object]]) -> list[object]:
    return [one["model"] for one in said]

"""Killed at any moment, or out of room, a device has the old version or the new one, whole."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.updates.channel import open_channel
from deploy.updates.device.store import Device
from deploy.updates.device.update import update
from deploy.updates.release import CHAMPION
from everlearn.errors import Unavailable
from tests.deploy.updates.conftest import Published
from tests.deploy.updates.test_device import same

STEPS = frozenset(
    {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.chmod"}
)
"""What changes, or is about to change, the disk: Python tells its audit hooks of each."""
KILLS = 20
WITHIN_NAMESPACE = ["unshare", "--map-root-user", "--mount"]


def update_until(folder: Path, step: int) -> None:
    """Updates, and is killed before the ``step``-th change of the disk under ``folder``; says how many there were."""
    device, seen = Device(folder), 0

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in STEPS and str(arguments[0]).startswith(str(folder)):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    update(device)
    (folder.parent / "steps").write_text(str(seen))


def killed_at(folder: Path, step: int) -> int:
    """The exit status of a process that updates so."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["onnxruntime", "deploy.updates.device.update"])
    process = context.Process(target=update_until, args=(folder, step))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def test_killed_before_any_change_of_the_disk_it_has_one_version_whole_and_then_goes_on(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    before = published.device(tmp_path / "before")
    update(before)
    published.publish(edge_folders[3])
    whole = Device(shutil.copytree(before.folder, tmp_path / "whole"))
    assert killed_at(whole.folder, 0) == 0
    steps = int((tmp_path / "steps").read_text())
    assert steps > 60
    chosen = sorted(random.Random(0).sample(range(1, steps), KILLS - 12)) + list(range(steps - 11, steps + 1))
    seen: set[int] = set()
    for step in chosen:
        device = Device(shutil.copytree(before.folder, tmp_path / f"device-{step}"))
        assert killed_at(device.folder, step) == -signal.SIGKILL
        state = device.state
        versions = {before.state.current: 2, whole.state.current: 3}
        version = versions[state.current]
        same(device.current(), edge_folders[version])
        seen.add(version)
        if version == 3:
            same(device.versions / str(state.previous), edge_folders[2])
        if step % 3 == 0:  # killed, and killed again where it takes up what it finds
            killed_at(device.folder, step // 2 + 1)
        assert update(device).version == 3
        same(device.current(), edge_folders[3])
        same(device.versions / str(device.state.previous), edge_folders[2])
        assert len(list(device.versions.iterdir())) == 2
        shutil.rmtree(device.folder)
    assert seen == {2, 3}, "the kills fell on both sides of the swap"


def test_what_broke_off_is_not_asked_for_again(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    device, had = published.device(tmp_path / "device"), 700_000
    total = update(Device(shutil.copytree(device.folder, tmp_path / "other"))).received_bytes
    release = open_channel(published.folder).release("tiny", "linux-x64", CHAMPION)
    assert release is not None
    way = next(one for one in release.files if one.path == "weights-000.bin").ways(())[0]
    (device.staging / "downloads").mkdir(parents=True)
    begun = (published.folder / "blobs" / way.sha256).read_bytes()[:had]
    (device.staging / "downloads" / f"{way.sha256}.part").write_bytes(begun)
    assert update(device).received_bytes == total - had
    same(device.current(), edge_folders[2])


@pytest.mark.parametrize("room_kb", [0, 300, 900])
def test_a_full_disk_leaves_the_old_version_whole_and_room_for_it_to_work(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path, room_kb: int
) -> None:
    """On a disk of its own that is really full: mounted in a namespace of the process."""
    if subprocess.run([*WITHIN_NAMESPACE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system gives no mount namespace to a user")
    update(published.device(tmp_path / "device"))
    published.publish(edge_folders[3])
    (tmp_path / "disk").mkdir()
    script = f"""
        set -e
        size=$(($(du -sk {tmp_path}/device | cut -f1) + {room_kb} + 20))
        mount -t tmpfs -o size=${{size}}k none {tmp_path}/disk
        cp -r {tmp_path}/device {tmp_path}/disk/device
        {sys.executable} -m tests.deploy.updates.full_disk {tmp_path}/disk/device
        cp -r {tmp_path}/disk/device {tmp_path}/after
    """
    done = subprocess.run(
        [*WITHIN_NAMESPACE, "sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "refused" in done.stdout and "Unavailable" in done.stdout, done.stdout
    device = Device(tmp_path / "after")
    same(device.current(), edge_folders[2])
    assert not device.staging.exists() or room_kb == 0
    assert update(device).version == 3


def test_a_disk_without_room_is_refused_before_anything_is_fetched(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = published.device(tmp_path / "device")
    nearly_full = shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: nearly_full)
    with pytest.raises(Unavailable, match=r"1 MB are free.*this update needs 1\d MB"):
        update(device)
    assert not list(device.folder.glob("staging/downloads/*"))

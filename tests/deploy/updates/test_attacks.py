"""Whoever holds the server, but not the keys, can keep devices from news; they say so, and keep what they have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deploy.updates.device.store import Device
from deploy.updates.device.update import update
from deploy.updates.keys import Keys
from deploy.updates.publisher import init, opened
from everlearn.errors import Corrupt, InvalidInput, Unavailable
from tests.deploy.updates.conftest import Published
from tests.deploy.updates.test_device import same


@pytest.fixture
def device(published: Published, edge_folders: dict[int, Path], tmp_path: Path) -> Device:
    """A device with version 2, while the channel has version 3."""
    made = published.device(tmp_path / "device")
    update(made)
    published.publish(edge_folders[3])
    return made


def newest(folder: Path, role: str) -> Path:
    return max(folder.glob(f"metadata/*{role}.json"), key=lambda one: (len(one.name), one.name))


def without_signature(raw: dict) -> None:
    raw["signatures"][0]["sig"] = "00" * 64


def of_longer_life(raw: dict) -> None:
    raw["signed"]["expires"] = "2099-01-01T00:00:00Z"


@pytest.mark.parametrize("change", [without_signature, of_longer_life])
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_changed_metadata_is_refused(
    published: Published,
    device: Device,
    edge_folders: dict[int, Path],
    role: str,
    change: Callable[[dict], None],
) -> None:
    file = newest(published.folder, role)
    raw = json.loads(file.read_bytes())
    change(raw)
    file.write_text(json.dumps(raw))
    refused(device, edge_folders)


def test_a_root_of_other_keys_is_refused(
    published: Published, device: Device, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    mine = Keys(tmp_path / "mine", tmp_path / "channel")
    init(tmp_path / "channel", mine)
    with opened(tmp_path / "channel", mine) as publisher:
        publisher.repository.rotate("root")
        publisher.publish(edge_folders[1])
    shutil.rmtree(published.folder)
    shutil.copytree(tmp_path / "channel", published.folder)
    refused(device, edge_folders)


def test_an_older_state_of_the_channel_is_refused_once_a_newer_one_was_seen(
    published: Published, device: Device, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    shutil.copytree(published.folder, tmp_path / "older")
    published.change(lambda publisher: publisher.rollback("tiny", "linux-x64", version=2))
    assert not update(device).changed
    shutil.rmtree(published.folder)
    shutil.copytree(tmp_path / "older", published.folder)
    refused(device, edge_folders)


def test_an_older_snapshot_beside_a_new_timestamp_is_refused(
    published: Published, device: Device, edge_folders: dict[int, Path]
) -> None:
    news = newest(published.folder, "snapshot")
    older = news.with_name(f"{int(news.name.partition('.')[0]) - 1}.snapshot.json")
    shutil.copy(older, news)
    refused(device, edge_folders)


def test_a_channel_whose_timestamp_has_expired_is_refused_until_it_is_refreshed(
    published: Published, device: Device, edge_folders: dict[int, Path]
) -> None:
    with opened(published.folder, published.keys, datetime.now(UTC) - timedelta(days=4)) as publisher:
        publisher.refresh()
    with pytest.raises(Unavailable, match=r"signatures have expired.*refresh"):
        update(device)
    same(device.current(), edge_folders[2])
    published.change(lambda publisher: publisher.refresh())
    assert update(device).version == 3


def test_a_changed_difference_is_passed_over_and_changed_files_are_refused(
    published: Published, device: Device, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    for blob in (published.folder / "blobs").iterdir():
        if blob.read_bytes()[:8] == b"EVDELTA1":
            changed(blob)
    fresh = Device(shutil.copytree(device.folder, tmp_path / "copy"))
    same(update(fresh).folder, edge_folders[3])  # by whole files
    for blob in (published.folder / "blobs").iterdir():
        if blob.read_bytes()[:8] != b"EVDELTA1":
            changed(blob)
    with pytest.raises(Corrupt, match=r"cannot be had as it was signed.*other bytes than"):
        update(device)
    same(device.current(), edge_folders[2])


def test_a_release_that_names_a_path_outside_its_folder_is_refused() -> None:
    from deploy.updates.release import read_release

    blob = {"bytes": 1, "sha256": "0" * 64}
    said = {"model": "m", "target": "t", "version": 1, "digest": ""}
    for path in ("../edge", "/etc/passwd", "a/b", ".hidden", "", "a\\b", "a\n"):
        files = [{"path": "edge.json", **blob}, {"path": path, **blob}]
        with pytest.raises(Corrupt, match=r"files\.1\.path"):
            read_release(json.dumps({**said, "files": files}).encode())
    for files in ([{"path": "a", **blob}], [{"path": "edge.json", **blob}] * 2):
        with pytest.raises(Corrupt, match="each file once"):
            read_release(json.dumps({**said, "files": files}).encode())


def test_a_device_trusts_only_a_root_that_signs_itself(published: Published, tmp_path: Path) -> None:
    from deploy.updates.device.store import Followed, create

    raw = json.loads((published.folder / "metadata" / "1.root.json").read_bytes())
    followed = Followed(url=published.url, model="tiny", target="linux-x64")
    for content in (b"{}", b"nothing", json.dumps({**raw, "signatures": []}).encode()):
        with pytest.raises(InvalidInput, match=r"no root\.json"):
            create(tmp_path / "device", content, followed)
    assert not (tmp_path / "device").exists()


def changed(blob: Path) -> None:
    raw = bytearray(blob.read_bytes())
    raw[len(raw) // 2] ^= 1
    blob.write_bytes(raw)


def refused(device: Device, edge_folders: dict[int, Path]) -> None:
    with pytest.raises(Corrupt, match="not what was signed, or is older"):
        update(device)
    same(device.current(), edge_folders[2])

"""A device follows its channel: by few bytes, to what was signed, to its share of a canary, and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.updates.channel import open_channel
from deploy.updates.device.__main__ import main
from deploy.updates.device.store import Device
from deploy.updates.device.update import update
from deploy.updates.release import CANARY, CHAMPION, takes_canary
from everlearn.errors import Conflict, Corrupt, NotFound, Unavailable
from tests.deploy.updates.conftest import Published
from tests.deploy.updates.edge_folders import lesson, weights, write_edge_folder


def test_a_device_gets_the_champion_whole_and_its_next_version_by_a_few_bytes(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    device = published.device(tmp_path / "device")
    first = update(device)
    assert (first.version, first.alias, first.changed) == (2, CHAMPION, True)
    same(first.folder, edge_folders[2])
    published.publish(edge_folders[3])
    second = update(device)
    same(second.folder, edge_folders[3])
    assert second.received_bytes < 0.1 * first.received_bytes
    assert not update(device).changed and update(device).received_bytes == 0
    channel = open_channel(published.folder)
    release = channel.release("tiny", "linux-x64", CHAMPION)
    assert release and channel.update_bytes(release)["version 2"] == second.received_bytes


def test_a_rollback_of_the_channel_is_an_update_of_as_few_bytes(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    device = published.device(tmp_path / "device")
    update(device)
    published.publish(edge_folders[3])
    forth = update(device)
    published.change(lambda publisher: publisher.rollback("tiny", "linux-x64"))
    back = update(device)
    same(back.folder, edge_folders[2])
    # every byte of version 2 is still here, as the last good version
    assert back.changed and back.received_bytes == 0 and forth.received_bytes > 0
    fresh = published.device(tmp_path / "other")
    assert update(fresh).version == 2


def test_a_device_goes_back_by_itself_and_waits_for_another_version(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, root = tmp_path / "device", published.folder / "metadata" / "1.root.json"
    said = ["--root", str(root), "--url", published.url, "--model", "tiny", "--target", "linux-x64"]
    assert main(["init", str(folder), *said]) == 0
    assert main(["rollback", str(folder)]) == 1 and "no version to go back to" in capsys.readouterr().err
    assert main(["update", str(folder)]) == 0
    published.publish(edge_folders[3])
    assert main(["update", str(folder)]) == 0
    assert main(["rollback", str(folder)]) == 0
    same(Device(folder).current(), edge_folders[2])
    assert main(["update", str(folder)]) == 0
    assert "version 2 (champion): nothing new" in capsys.readouterr().out, "it waits for another version"
    published.publish(write_edge_folder(tmp_path / "4", lesson(weights(), 9), 4))
    assert update(Device(folder)).version == 4


def test_a_version_that_this_machine_computes_otherwise_never_becomes_current(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    device = published.device(tmp_path / "device")
    update(device)
    published.publish(write_edge_folder(tmp_path / "wrong", lesson(weights(), 5), 5, wrong_by=0.5))
    with pytest.raises(Corrupt, match=r"numbers 0\.5 from those of its manifest, and 0\.01 is allowed"):
        update(device)
    same(device.current(), edge_folders[2])
    assert not update(device).changed, "it is not fetched again"
    published.publish(edge_folders[3])
    assert update(device).version == 3


def test_a_canary_reaches_its_share_of_devices_without_their_ids(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    ids = [f"{n:032x}" for n in range(4000)]
    few = {one for one in ids if takes_canary(one, "a", 50_000)}
    more = {one for one in ids if takes_canary(one, "a", 200_000)}
    other = {one for one in ids if takes_canary(one, "b", 50_000)}
    assert 120 < len(few) < 280 and few < more and len(more) < 1000 and len(few & other) < 40
    assert all(takes_canary(one, "a", 1_000_000) for one in ids)

    published.change(lambda publisher: publisher.publish(edge_folders[3], CANARY, 500_000))
    digest = open_channel(published.folder).release("tiny", "linux-x64", CANARY).digest
    inside = next(one for one in ids if takes_canary(one, digest, 500_000))
    outside = next(one for one in ids if not takes_canary(one, digest, 500_000))
    devices = {}
    for name, expected in ((inside, 3), (outside, 2)):
        devices[name] = published.device(tmp_path / name)
        (devices[name].folder / "id").write_text(name)
        assert update(devices[name]).version == expected
    published.change(lambda publisher: publisher.rollback("tiny", "linux-x64", CANARY))
    back = update(devices[inside])
    assert (back.version, back.alias) == (2, CHAMPION) and back.received_bytes < 100_000, "by a difference"
    published.change(lambda publisher: publisher.publish(edge_folders[3], CANARY, 500_000))
    published.change(lambda publisher: publisher.publish(edge_folders[3]))
    assert open_channel(published.folder).release("tiny", "linux-x64", CANARY) is None
    assert {update(one).version for one in devices.values()} == {3}


def test_a_broken_file_of_the_version_that_is_here_is_replaced_and_not_built_upon(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    device = published.device(tmp_path / "device")
    first = update(device)
    for name, at in (("weights-000.bin", 300_000), ("tokenizer.json", 100)):
        broken = bytearray((first.folder / name).read_bytes())
        broken[at] ^= 1
        (first.folder / name).write_bytes(broken)
    published.publish(edge_folders[3])
    same(update(device).folder, edge_folders[3])


def test_the_last_good_version_stays_and_older_ones_go(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    device = published.device(tmp_path / "device")
    published.change(lambda publisher: publisher.rollback("tiny", "linux-x64", version=1))
    folders = [update(device).folder]
    for version in (2, 3):
        published.publish(edge_folders[version])
        folders.append(update(device).folder)
    assert [one.exists() for one in folders] == [False, True, True]
    assert sorted(one.name for one in device.folder.iterdir()) == [
        "channel.json", "id", "lock", "metadata", "releases", "root.json", "state.json", "versions",
    ] or not (device.folder / "staging").exists()  # fmt: skip
    same(device.go_back(), edge_folders[2])


def test_two_updates_at_once_and_a_channel_that_is_gone_say_so(published: Published, tmp_path: Path) -> None:
    device = published.device(tmp_path / "device")
    with pytest.raises(NotFound, match="no version yet"):
        device.current()
    with device.locked(), pytest.raises(Conflict, match="another update"):
        update(device)
    nowhere = device.followed.model_copy(update={"url": "http://127.0.0.1:9"})
    (device.folder / "channel.json").write_text(nowhere.model_dump_json())
    with pytest.raises(Unavailable, match="does not answer"):
        update(Device(device.folder))
    with pytest.raises(NotFound, match="follows no channel"):
        Device(tmp_path / "nothing")


def same(folder: Path, expected: Path) -> None:
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == {
        one.name: one.read_bytes() for one in expected.iterdir()
    }

"""A publisher's keys stay its own, its channel is whole whenever it stops, and devices follow its rotations."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.edge.check.check import check
from deploy.updates import metadata
from deploy.updates.channel import open_channel
from deploy.updates.device.update import update
from deploy.updates.keys import ROLES, Keys
from deploy.updates.publisher import KEPT, init, opened
from deploy.updates.release import CANARY, CHAMPION
from deploy.updates.versions import publish_version
from everlearn.cli.commands import app
from everlearn.errors import Conflict, Corrupt, InvalidInput, NotFound
from everlearn.settings import Settings
from tests.deploy.updates.conftest import Published
from tests.deploy.updates.edge_folders import lesson, weights, write_edge_folder
from tests.deploy.updates.test_device import same


def everlearn(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["deploy", "channel", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_commands_publish_show_and_take_back(edge_folders: dict[int, Path], tmp_path: Path) -> None:
    channel, keys = tmp_path / "channel", ("--keys", tmp_path / "keys")
    everlearn("init", channel, *keys)
    for version in (1, 2):
        everlearn("publish", channel, edge_folders[version], *keys)
    said = json.loads(
        everlearn("publish", channel, edge_folders[3], *keys, "--alias", "canary", "--share", "5%", "--json")
    )
    assert (said["version"], said["alias"]) == (3, "canary")
    assert said["update_bytes"]["version 2"] < 0.1 * said["update_bytes"]["nothing"]
    shown = json.loads(everlearn("show", channel, "--json"))
    assert [(one["alias"], one["version"], one["share"]) for one in shown["releases"]] == [
        ("canary", 3, 0.05),
        ("champion", 2, 1.0),
    ]
    assert "canary: version 3, for 5.0000% of the devices" in everlearn("show", channel)
    everlearn("rollback", channel, "tiny", "--target", "linux-x64", *keys)
    everlearn("rollback", channel, "tiny", "--target", "linux-x64", *keys, "--alias", "canary")
    assert [
        (one["alias"], one["version"]) for one in json.loads(everlearn("show", channel, "--json"))["releases"]
    ] == [("champion", 1)]
    assert "timestamp" in everlearn("refresh", channel, *keys)


def test_keys_are_for_their_owner_alone_and_outside_of_what_is_published(
    edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    keys = Keys(tmp_path / "keys", tmp_path / "channel")
    init(tmp_path / "channel", keys)
    files = [file for role in ROLES for file in keys.files(role)]
    assert len(files) == 4 and {file.stat().st_mode & 0o777 for file in files} == {0o600}
    private = [line for file in files for line in file.read_bytes().splitlines() if b"-----" not in line]
    for file in (tmp_path / "channel").rglob("*.json"):
        assert not any(line in file.read_bytes() for line in private)
    for folder in (tmp_path / "channel" / "keys", tmp_path / "channel", tmp_path):
        with pytest.raises(InvalidInput, match="lies within"):
            Keys(folder, tmp_path / "channel")
    keys.files("targets")[0].chmod(0o640)
    with opened(tmp_path / "channel", keys) as publisher, pytest.raises(Conflict, match="others may read"):
        publisher.publish(edge_folders[1])
    with pytest.raises(Conflict, match="a channel already"):
        init(tmp_path / "channel", keys)
    with pytest.raises(NotFound, match="is no channel"):
        open_channel(tmp_path / "nothing")


def test_a_server_of_another_user_reads_all_of_a_channel_whatever_the_umask(
    edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    keys, before = Keys(tmp_path / "keys", tmp_path / "channel"), os.umask(0o077)
    try:
        init(tmp_path / "channel", keys)
        with opened(tmp_path / "channel", keys) as publisher:
            publisher.publish(edge_folders[1])
    finally:
        os.umask(before)
    there = [tmp_path / "channel", *(tmp_path / "channel").rglob("[!.]*")]
    needed = {path: 0o055 if path.is_dir() else 0o044 for path in there}
    closed = [path for path, bits in needed.items() if path.stat().st_mode & bits != bits]
    assert len(there) > 10 and not closed


def test_a_device_follows_the_rotation_of_every_key_and_former_keys_sign_nothing(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    device = published.device(tmp_path / "device")
    update(device)
    stolen = shutil.copytree(published.keys_folder, tmp_path / "stolen")
    late = published.device(tmp_path / "late")
    for role in ROLES:
        published.change(lambda publisher, role=role: publisher.repository.rotate(role))
        assert not update(device).changed
    published.publish(edge_folders[3])
    assert update(device).version == update(late).version == 3
    with opened(published.folder, Keys(stolen, published.folder)) as publisher:
        with pytest.raises(NotFound, match=r"no key in .* signs for targets"):
            publisher.publish(edge_folders[1])
        with pytest.raises(Conflict, match="0 of the root's keys are here, and 1 must sign"):
            publisher.repository.rotate("timestamp")


def test_a_root_of_three_keys_takes_two_of_them(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    channel, media = tmp_path / "channel", [tmp_path / name for name in "abc"]
    with pytest.raises(InvalidInput, match="a threshold of 2 takes as many keys"):
        init(channel, Keys(tmp_path / "keys", channel), threshold=2)
    init(channel, Keys(tmp_path / "keys", channel, media), threshold=2)
    alone, two = (Keys(tmp_path / "keys", channel, media[:n]) for n in (1, 2))
    with (
        opened(channel, alone) as publisher,
        pytest.raises(Conflict, match="1 of the root's keys are here, and 2"),
    ):
        publisher.repository.rotate("timestamp")
    with opened(channel, two) as publisher:
        publisher.repository.rotate("root")
        publisher.repository.rotate("timestamp")
        publisher.publish(edge_folders[2])
    shutil.rmtree(published.folder)
    shutil.copytree(channel, published.folder)
    device = published.device(tmp_path / "device")
    assert update(device).version == 2
    with opened(channel, Keys(tmp_path / "keys", channel, media[1:])) as publisher:
        publisher.repository.rotate("snapshot")  # the third key was not there, and still counts


def test_a_publisher_killed_between_any_two_writes_leaves_the_old_state_and_publishes_again(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, whole = published.device(tmp_path / "device"), metadata.write_public
    update(device)
    left = 0

    def stops(file: Path, content: bytes) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        whole(file, content)

    for role in (None, *ROLES):
        for writes in range(7) if role is None else (1, 2, 3):
            left = writes
            monkeypatch.setattr(metadata, "write_public", stops)
            try:
                if role is None:
                    published.publish(edge_folders[3])
                else:
                    published.change(lambda publisher, role=role: publisher.repository.rotate(role))
            except KeyboardInterrupt:
                pass
            monkeypatch.setattr(metadata, "write_public", whole)
            published.change(lambda publisher: publisher.refresh())
            same(update(device).folder, edge_folders[open_version(published)])
    assert open_version(published) == 3


def open_version(published: Published) -> int:
    release = open_channel(published.folder).release("tiny", "linux-x64", CHAMPION)
    assert release
    return release.version


def test_refresh_signs_what_is_past_half_of_its_life(published: Published) -> None:
    def after(days: int) -> list[str]:
        with opened(published.folder, published.keys, datetime.now(UTC) + timedelta(days=days)) as publisher:
            return publisher.refresh()

    assert after(1) == ["timestamp"]
    assert after(20) == ["snapshot", "timestamp"]
    assert after(60) == ["targets", "snapshot", "timestamp"]
    assert after(200) == ["root", "targets", "snapshot", "timestamp"]
    for key in published.keys.files("root"):
        key.unlink()
    assert after(400) == ["targets", "snapshot", "timestamp"], "the root waits for its keys"


def test_what_no_version_needs_goes(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    tensors = weights()
    for version in range(3, KEPT + 4):
        tensors = lesson(tensors, version, share=0.001)
        published.publish(write_edge_folder(tmp_path / str(version), tensors, version))
    before = sum(file.stat().st_size for file in published.folder.rglob("*") if file.is_file())
    published.change(lambda publisher: publisher.refresh())
    after = sum(file.stat().st_size for file in published.folder.rglob("*") if file.is_file())
    channel = open_channel(published.folder)
    held = [one.version for one in channel.versions("tiny", "linux-x64")]
    assert held == list(range(KEPT + 4 - KEPT, KEPT + 4)) and after < before
    device = published.device(tmp_path / "device")
    assert update(device).version == KEPT + 3
    with pytest.raises(NotFound, match="holds no former version"):
        published.change(lambda publisher: publisher.rollback("tiny", "linux-x64", version=2))
    published.change(lambda publisher: publisher.rollback("tiny", "linux-x64", version=held[0]))
    assert update(device).version == held[0]


def test_what_cannot_be_published_says_why(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(edge_folders[3], tmp_path / "broken"))
    (broken / "weights-000.bin").write_bytes(b"other")
    with pytest.raises(Corrupt, match=r"weights-000.bin is not the file that was written"):
        published.publish(broken)
    whole = json.loads((edge_folders[3] / "edge.json").read_bytes())
    for said, told in (
        ({key: value for key, value in whole.items() if key != "probes"}, "probes: Field required"),
        ({key: value for key, value in whole.items() if key != "bound"}, "bound: Field required"),
        (whole | {"target": "webb"}, "target 'webb' is none of web, linux-x64"),
    ):
        (broken / "edge.json").write_text(json.dumps(said))
        with pytest.raises(Corrupt, match=told):
            published.publish(broken)
    with pytest.raises(Corrupt, match="target 'webb' is none of web, linux-x64"):
        check(Settings(), broken)
    with pytest.raises(InvalidInput, match="--target 'webb' is none of web, linux-x64"):
        published.change(
            lambda publisher: publish_version(publisher, Settings(), "tiny", "webb", CHAMPION, 10**6)
        )
    with pytest.raises(NotFound, match=r"no edge folder: it has no edge\.json"):
        published.publish(tmp_path)
    for alias, share, told in (
        ("best", 10**6, "no alias"),
        (CANARY, 0, "share of 0"),
        (CHAMPION, 5, "share of 0.0005%"),
    ):
        with pytest.raises(InvalidInput, match=told):
            published.change(lambda publisher, a=alias, s=share: publisher.publish(edge_folders[3], a, s))
    with opened(published.folder, published.keys), pytest.raises(Conflict, match="another publisher"):
        published.publish(edge_folders[3])
    with pytest.raises(NotFound, match="nothing is published"):
        published.change(lambda publisher: publisher.rollback("other", "web"))
    assert open_version(published) == 2


def test_a_channel_changed_by_who_stores_it_is_not_signed_again(
    published: Published, edge_folders: dict[int, Path]
) -> None:
    channel = open_channel(published.folder)
    manifest = channel.versions("tiny", "linux-x64")[0].manifest
    file = channel.blobs.path(manifest.sha256)
    file.write_bytes(file.read_bytes().replace(b'"version":1', b'"version":9'))
    with pytest.raises(Corrupt, match="bytes have changed"):
        published.publish(edge_folders[3])
    for release in published.folder.glob("targets/tiny/linux-x64/*"):
        release.write_bytes(release.read_bytes() + b" ")
    with pytest.raises(Corrupt, match=r"versions\.json"):
        published.publish(edge_folders[3])

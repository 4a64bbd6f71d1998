"""A server that is busy, slow or breaks off, and a machine that fails for a moment, cost a device no version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.edge.check import native_session
from deploy.updates.device import store, transport
from deploy.updates.device.__main__ import main
from deploy.updates.device.store import Device, Followed, create
from deploy.updates.device.update import update
from everlearn.errors import NotFound, Unavailable
from tests.deploy.updates.bad_server import Fault, bad_server, breaking, busy, dripping
from tests.deploy.updates.conftest import Published
from tests.deploy.updates.test_device import same


def of(published: Published, url: str, folder: Path) -> Device:
    root = (published.folder / "metadata" / "1.root.json").read_bytes()
    return create(folder, root, Followed(url=url, model="tiny", target="linux-x64"))


def test_a_device_waits_as_long_as_a_busy_server_says(published: Published, tmp_path: Path) -> None:
    seen: dict[str, list[float]] = {}
    refuse = busy(seen, 1, 429, "0")
    slow = busy({}, 1, 503, "1", part="timestamp")
    with bad_server(
        published.folder, lambda request, content: refuse(request, content) or slow(request, content)
    ) as url:
        assert update(of(published, url, tmp_path / "device")).version == 2
    assert len(seen["/metadata/timestamp.json"]) == 3
    assert seen["/metadata/timestamp.json"][2] - seen["/metadata/timestamp.json"][1] >= 1
    assert any(len(times) == 2 for path, times in seen.items() if path.startswith("/blobs/"))


@pytest.mark.parametrize("part", ["timestamp", "blobs"])
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda part: busy({}, 1000, 503, "0", part), r"is busy \(status 503\)"),
        (lambda part: dripping(part, 8), "less than 2048 bytes per second"),
        (breaking, "IncompleteRead|ended early"),
    ],
)
def test_a_server_that_stays_busy_is_slow_or_breaks_off_is_left(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, fault: Any, told: str
) -> None:
    monkeypatch.setattr(transport, "PATIENCE_S", 0.5)
    made: Fault = fault(part)
    with bad_server(published.folder, made) as url:
        device = of(published, url, tmp_path / "device")
        with pytest.raises(Unavailable, match=told):
            update(device)
    with pytest.raises(NotFound):
        device.current()


def test_a_version_that_could_not_be_run_for_a_moment_is_tried_again(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = published.device(tmp_path / "device")
    update(device)
    published.publish(edge_folders[3])
    with monkeypatch.context() as patch:

        def no_memory(_: object) -> None:
            raise MemoryError("Failed to allocate memory")

        patch.setattr(native_session, "answer", no_memory)
        with pytest.raises(Unavailable, match=r"version 3 did not run here.*MemoryError"):
            update(device)
    same(device.current(), edge_folders[2])
    after = update(device)
    assert after.version == 3 and after.received_bytes == 0, "nothing is fetched twice"


def test_the_last_good_version_is_never_deleted_before_its_replacement_is_there(
    published: Published, edge_folders: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = published.device(tmp_path / "device")
    update(device)
    published.publish(edge_folders[3])
    update(device)
    published.change(lambda publisher: publisher.rollback("tiny", "linux-x64"))
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(store, "move_directory", killed)
        assert update(device).version == 2, "it is here whole, and nothing is moved"
    same(device.current(), edge_folders[2])
    same(device.go_back(), edge_folders[3])
    shared = device.versions / str(device.state.previous) / "tokenizer.json"
    shared.unlink()  # both versions have the file
    shared.write_text("{}")
    with pytest.raises(NotFound, match="a broken one"):
        device.go_back()
    same(device.current(), edge_folders[3])


def test_a_fault_of_the_disk_ends_in_one_line(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = published.device(tmp_path / "device")
    (device.folder / "releases").write_text("a file where a folder belongs")
    assert main(["update", str(device.folder)]) == Unavailable("").exit_code
    assert f"\nerror: {device.folder} cannot be updated: " in capsys.readouterr().err
    (device.folder / "releases").unlink()
    (device.folder / "state.json").mkdir()
    assert main(["current", str(device.folder)]) == Unavailable("").exit_code
    assert "cannot be read or written" in capsys.readouterr().err

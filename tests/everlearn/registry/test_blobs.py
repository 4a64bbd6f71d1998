"""Remote stores: a second directory behind ``file``-like fsspec, and one in memory."""

import os
import shutil
import signal
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest

from everlearn.bundles.bundle import MANIFEST, read_manifest
from everlearn.errors import ConfigError, Corrupt, Unavailable
from everlearn.registry.registry import Registry
from everlearn.settings import Settings


@pytest.fixture(params=["memory", "local"])
def remote(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> Registry:
    """``local`` is fsspec's own view of a directory, treated as any remote store is."""
    root = {"memory": f"memory://{uuid.uuid4().hex}", "local": f"local://{tmp_path / 'bucket'}"}[
        request.param
    ]
    return Registry(settings.model_copy(update={"store_url": root}))


def stored(registry: Registry) -> dict[str, list[str]]:
    """Files of each bundle in the store."""
    assert registry.settings.store_url
    fs, root = fsspec.url_to_fs(registry.settings.store_url)
    found: dict[str, list[str]] = {}
    for path in fs.find(root):
        digest, _, name = path.removeprefix(root).strip("/").partition("/")
        found.setdefault(digest, []).append(name)
    return found


def test_a_bundle_is_uploaded_and_served_from_a_verified_copy(remote: Registry, add: Any) -> None:
    version = add(remote)
    assert stored(remote) == {version.digest: sorted([*version.manifest.files, MANIFEST])}
    path = remote.path(version)
    assert path == remote.settings.home / "cache" / version.digest
    assert remote.path(version) == path
    shutil.rmtree(path)
    assert remote.path(version) == path and (path / "config.json").is_file()


def test_a_second_machine_sees_what_the_first_one_added(remote: Registry, add: Any, tmp_path: Path) -> None:
    version = add(remote)
    other = Registry(
        remote.settings.model_copy(
            update={"home": tmp_path / "other", "database_url": remote.settings.resolved_database_url()}
        )
    )
    assert other.resolve("tiny") == version
    assert (other.path(version) / "model.safetensors").is_file()


def test_a_byte_changed_in_the_store_or_in_the_copy_is_refused_by_name(remote: Registry, add: Any) -> None:
    version = add(remote)
    fs, root = fsspec.url_to_fs(remote.settings.store_url)
    name = f"{root}/{version.digest}/config.json"
    content = fs.cat_file(name)
    fs.pipe_file(name, content.replace(b"llama", b"lLama"))
    with pytest.raises(Corrupt, match=r"config\.json"):
        remote.path(version)
    fs.pipe_file(name, content)
    copy = remote.path(version) / "config.json"
    copy.write_bytes(content.replace(b"llama", b"llAma"))
    with pytest.raises(Corrupt, match=r"config\.json"):
        remote.path(version)
    remote.verify(version)  # takes a fresh copy
    assert copy.read_bytes() == content


def test_a_file_lost_by_the_store_is_told_by_name(remote: Registry, add: Any) -> None:
    version = add(remote)
    fs, root = fsspec.url_to_fs(remote.settings.store_url)
    fs.rm_file(f"{root}/{version.digest}/model.safetensors")
    with pytest.raises(Corrupt, match=r"model\.safetensors is missing"):
        remote.path(version)


def test_collection_removes_orphans_here_and_there_and_leaves_uploads_alone(
    remote: Registry, add: Any
) -> None:
    kept, gone = add(remote), add(remote)
    remote.path(gone)
    fs, root = fsspec.url_to_fs(remote.settings.store_url)
    upload = "a" * 64
    fs.makedirs(f"{root}/{upload}", exist_ok=True)
    fs.pipe_file(f"{root}/{upload}/config.json", b"{}")  # without its bundle.json: still under way
    fs.makedirs(f"{root}/notes", exist_ok=True)
    fs.pipe_file(f"{root}/notes/readme.txt", b"not ours")
    remote.delete(gone.ref)
    assert remote.collect().bundles == (gone.digest,)
    assert stored(remote).keys() == {kept.digest, upload, "notes"}
    assert not (remote.settings.home / "cache" / gone.digest).exists()


def test_an_upload_that_nobody_finishes_is_collected_after_a_day(
    remote: Registry, add: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = add(remote)
    fs, root = fsspec.url_to_fs(remote.settings.store_url)
    fs.makedirs(f"{root}/{'a' * 64}", exist_ok=True)
    fs.pipe_file(f"{root}/{'a' * 64}/config.json", b"{}")
    monkeypatch.setattr("everlearn.registry.blobs.UPLOAD_GRACE_S", -1)
    assert remote.collect().bundles == ("a" * 64,)
    assert stored(remote).keys() == {version.digest}


@pytest.mark.parametrize("files_sent", [0, 1, 3])
def test_a_process_killed_while_it_uploads_lists_nothing_and_the_next_upload_is_whole(
    settings: Settings, fill_bundle: Any, bundle: Path, tmp_path: Path, files_sent: int
) -> None:
    remote = settings.model_copy(update={"store_url": f"local://{tmp_path / 'bucket'}"})
    child = os.fork()
    if child == 0:
        registry = Registry(remote)
        fs = registry._store._fs  # type: ignore[union-attr]
        send, sent = fs.put_file, 0

        def put_file(source: str, target: str) -> None:
            nonlocal sent
            if sent == files_sent:
                os.kill(os.getpid(), signal.SIGKILL)
            sent += 1
            send(source, target)

        fs.put_file = put_file
        registry.add(bundle, "tiny")
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    registry = Registry(remote)
    assert registry.list() == []
    sent = stored(registry).get(read_manifest(bundle).digest, [])
    assert len(sent) == files_sent
    assert MANIFEST not in sent  # which would say: complete, and nobody's
    assert registry.collect().bundles == ()
    registry.verify(registry.add(bundle, "tiny"))


def test_a_file_url_and_a_path_are_local_stores(settings: Settings, add: Any, tmp_path: Path) -> None:
    for number, url in enumerate([f"file://{tmp_path / 'a b'}", str(tmp_path / "c")]):
        registry = Registry(settings.model_copy(update={"store_url": url.replace(" ", "%20")}))
        path = registry.path(add(registry, f"m{number}"))
        assert path.parent in (tmp_path / "a b", tmp_path / "c")


def test_a_store_on_another_disk_gets_its_bundle_by_copy(settings: Settings, add: Any) -> None:
    disk = Path("/dev/shm")
    if not disk.is_dir() or disk.stat().st_dev == settings.directory("tmp").stat().st_dev:
        pytest.skip("there is no second disk")
    root = disk / f"everlearn-{uuid.uuid4().hex}"
    try:
        registry = Registry(settings.model_copy(update={"store_url": str(root)}))
        version = add(registry)
        registry.verify(version)
        assert registry.path(version).parent == root
        assert list(root.glob("stage-*")) == []
    finally:
        shutil.rmtree(root)


def test_a_store_that_cannot_be_had_is_one_clear_error(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="store_url cannot be used"):
        Registry(settings.model_copy(update={"store_url": "nosuch://bucket"}))


def test_a_store_that_does_not_answer_is_unavailable(
    remote: Registry, add: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TimeoutError("no answer")

    monkeypatch.setattr(remote._store._fs, "put_file", refuse)  # type: ignore[union-attr]
    with pytest.raises(Unavailable, match="the store does not answer: no answer"):
        add(remote)
    assert remote.list() == []

"""A channel with two versions, served over HTTP as files."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from deploy.updates.device.store import Device, Followed, create
from deploy.updates.keys import Keys
from deploy.updates.publisher import Publisher, init, opened
from tests.deploy.updates.edge_folders import lesson, weights, write_edge_folder


@pytest.fixture(scope="session")
def edge_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Versions 1 to 3 of a model, each a lesson after the one before."""
    folder, tensors, made = tmp_path_factory.mktemp("edge"), weights(), dict[int, Path]()
    for version in (1, 2, 3):
        made[version] = write_edge_folder(folder / str(version), tensors, version)
        tensors = lesson(tensors, seed=version)
    return made


class Published:
    """A channel, its keys, and where it is served."""

    def __init__(self, folder: Path, keys: Path, url: str) -> None:
        self.folder, self.keys_folder, self.url = folder, keys, url

    @property
    def keys(self) -> Keys:
        return Keys(self.keys_folder, self.folder)

    def change(self, act: Callable[[Publisher], object]) -> None:
        with opened(self.folder, self.keys) as publisher:
            act(publisher)

    def publish(self, *folders: Path) -> None:
        for folder in folders:
            self.change(lambda publisher, one=folder: publisher.publish(one))

    def device(self, folder: Path) -> Device:
        root = (self.folder / "metadata" / "1.root.json").read_bytes()
        return create(folder, root, Followed(url=self.url, model="tiny", target="linux-x64"))


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory, edge_folders: dict[int, Path]) -> Path:
    """A channel with versions 1 and 2, the second the champion, and its keys."""
    folder = tmp_path_factory.mktemp("published")
    keys = Keys(folder / "keys", folder / "channel")
    init(folder / "channel", keys)
    Published(folder / "channel", folder / "keys", "").publish(edge_folders[1], edge_folders[2])
    return folder


@pytest.fixture
def published(template: Path, tmp_path: Path) -> Iterator[Published]:
    """A copy of the channel, served."""
    shutil.copytree(template, tmp_path / "published")
    with served(tmp_path / "published" / "channel") as url:
        yield Published(tmp_path / "published" / "channel", tmp_path / "published" / "keys", url)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder over HTTP on a free port."""
    listening = socket.create_server(("127.0.0.1", 0))
    app = Starlette(routes=[Mount("/", StaticFiles(directory=folder))])
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()

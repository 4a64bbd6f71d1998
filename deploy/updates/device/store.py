"""A device's folder: the versions it has, and which of them it serves.

``state.json`` alone says which version is current, and is replaced in one step: whenever the device stops, it has the
old version or the new one, whole. ::

    root.json        what this device trusts; put there by its owner
    channel.json     where the channel is, and which model and target are followed
    state.json       current and previous version, and which one was refused
    id               random, of this device; it decides about canaries and is sent nowhere
    metadata/        the channel's, as last verified
    versions/NAME/   edge folders, by the first half of edge.json's sha256
    staging/         what is being fetched; a later update goes on with it
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from deploy.updates.blobs import sha256_of
from deploy.updates.release import MANIFEST, Name, Record, read_manifest
from everlearn.bundles.durable import move_directory, sync_directory, sync_tree, write_file
from everlearn.errors import Conflict, Corrupt, InvalidInput, NotFound

FOLDER_NAME = r"^[0-9a-f]{32}$"


class Followed(Record):
    """Which channel a device follows, and what of it."""

    url: str = Field(pattern=r"^https?://[^\s?#@]+$")
    model: Name
    target: Name


class State(Record):
    """Names of folders in ``versions``. ``refused``: a version that went wrong here, and is not fetched again."""

    current: str | None = Field(default=None, pattern=FOLDER_NAME)
    previous: str | None = Field(default=None, pattern=FOLDER_NAME)
    refused: str | None = Field(default=None, pattern=FOLDER_NAME)


class Device:
    """A device's folder. Raises NotFound where it is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions, self.staging = folder / "versions", folder / "staging"
        try:
            raw = (folder / "channel.json").read_bytes()
            self.followed = Followed.model_validate_json(raw)
        except FileNotFoundError:
            raise NotFound(f"{folder} follows no channel: init makes such a folder") from None
        except ValidationError as error:
            raise Corrupt(f"{folder / 'channel.json'}: {error.errors()[0]['msg']}") from None

    @property
    def state(self) -> State:
        """Raises Corrupt."""
        try:
            return State.model_validate_json((self.folder / "state.json").read_bytes())
        except FileNotFoundError:
            return State()
        except ValidationError as error:
            raise Corrupt(f"{self.folder / 'state.json'}: {error.errors()[0]['msg']}") from None

    def current(self) -> Path:
        """The edge folder to serve. Raises NotFound before the first update."""
        name = self.state.current
        if name is None:
            raise NotFound(f"{self.folder} has no version yet: run an update")
        return self.versions / name

    def id(self) -> str:
        """This device's random id."""
        file = self.folder / "id"
        if not file.exists():
            write_file(file, secrets.token_hex(16).encode())
        return file.read_text()

    def take(self, staged: Path, name: str) -> None:
        """A verified folder becomes current, and what was current is kept as the last good one."""
        former, target = self.state, self.versions / name
        if name != former.previous or not self.is_whole(name):
            sync_tree(staged)
            self.versions.mkdir(exist_ok=True)
            if target.exists():  # by an update that was killed before it said so, or broken since
                shutil.rmtree(target)
            move_directory(staged, target)
        self._write(State(current=name, previous=former.current))
        self.clear()

    def go_back(self) -> Path:
        """The last good version is current again; what it replaces is not fetched again. Raises NotFound."""
        with self.locked():
            state = self.state
            if state.previous is None or not self.is_whole(state.previous):
                raise NotFound(f"{self.folder} has no version to go back to, or a broken one")
            self._write(State(current=state.previous, previous=state.current, refused=state.current))
            return self.current()

    def is_whole(self, name: str) -> bool:
        """Whether every file of a version is the one that its edge.json lists."""
        folder = self.versions / name
        try:
            if not sha256_of(folder / MANIFEST).startswith(name):
                return False
            listed = read_manifest((folder / MANIFEST).read_bytes()).files
            return all(sha256_of(folder / one.path) == one.sha256 for one in listed)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def refuse(self, name: str) -> None:
        """``name`` is not fetched again, until the channel has another version."""
        self._write(self.state.model_copy(update={"refused": name}))

    def clear(self) -> None:
        """Removes versions that are neither current nor the last good one, and what an update left."""
        state = self.state
        shutil.rmtree(self.staging, ignore_errors=True)
        for folder in self.versions.iterdir() if self.versions.exists() else ():
            if folder.name not in (state.current, state.previous):
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """For one update at a time. Raises Conflict."""
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise Conflict(f"another update of {self.folder} is running") from None
        try:
            yield
        finally:
            lock.release()

    def _write(self, state: State) -> None:
        write_file(self.folder / "state.json", state.model_dump_json().encode())


def create(folder: Path, root: bytes, followed: Followed) -> Device:
    """A folder that follows a channel, and trusts ``root`` (a root.json of it). Raises Conflict where there is one."""
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root

    if (folder / "channel.json").exists():
        raise Conflict(f"{folder} follows a channel already; name another folder")
    try:
        read = Metadata[Root].from_bytes(root)
        read.verify_delegate("root", read)  # type: ignore[attr-defined]
    except (RepositoryError, AttributeError) as error:
        raise InvalidInput(f"this is no root.json of a channel: {error}", param="root") from None
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_file(folder / "root.json", root)
    write_file(folder / "channel.json", followed.model_dump_json().encode())
    sync_directory(folder)
    return Device(folder)

"""What a publisher does with a channel: publish a version, go back to one, and keep signatures fresh.

Files go in whole, once, by their sha256; beside them differences from the versions that devices may have. What a device
sees of all this is the release of an alias, and that changes in one step (:mod:`deploy.updates.metadata`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from deploy.edge.manifest import read_manifest as read_edge_manifest
from deploy.edge.manifest import verify_files
from deploy.edge.targets import TARGETS as EDGE_TARGETS
from deploy.updates.channel import Channel, Known, Versions
from deploy.updates.deltas import Deltas
from deploy.updates.keys import Keys
from deploy.updates.metadata import Repository, create
from deploy.updates.release import (
    CANARY,
    CHAMPION,
    MANIFEST,
    MILLION,
    VERSIONS,
    File,
    Release,
    pointer,
    read_manifest,
)
from everlearn.errors import Conflict, Corrupt, InvalidInput, NotFound
from everlearn.progress import Progress, silent

KEPT = 8
"""Versions of a model and target that can be gone back to."""
FROM = 3
"""Former versions that a difference is made from; a device that is further behind gets whole files."""


class Publisher(Channel):
    """A channel and the keys that sign it. One publisher at a time: see :func:`opened`."""

    def __init__(self, repository: Repository) -> None:
        super().__init__(repository)
        self.repository = repository

    def publish(
        self, folder: Path, alias: str = CHAMPION, share_ppm: int = MILLION, progress: Progress = silent
    ) -> Release:
        """Makes an edge folder the version that an alias stands for.

        Raises Corrupt where edge.json is not whole or the folder not what it says, Unsupported for another format,
        InvalidInput for a share that is none.
        """
        raw = read_edge(folder)
        whole = read_edge_manifest(
            folder
        )  # all of it: what a device lacks there, it finds after the download
        if whole.target not in EDGE_TARGETS:
            raise Corrupt(
                f"{folder / MANIFEST}: target {whole.target!r} is none of {', '.join(EDGE_TARGETS)}",
                param="target",
            )
        progress("comparing the files with their hashes", None)
        verify_files(folder, whole)
        manifest = read_manifest(raw, str(folder / MANIFEST))
        for file in manifest.files:
            progress(f"copying {file.path}", None)
            try:
                self.blobs.add(folder / file.path, file.sha256)
            except (FileNotFoundError, Corrupt) as error:
                raise Corrupt(f"{folder / file.path} is not what {MANIFEST} lists: {error}") from None
        known = Known(
            version=manifest.version,
            digest=manifest.digest,
            manifest=self.blobs.write(lambda out: out.write(raw) and None),
        )
        return self.point(manifest.model, manifest.target, alias, known, share_ppm, progress)

    def rollback(
        self,
        model: str,
        target: str,
        alias: str = CHAMPION,
        version: int | None = None,
        progress: Progress = silent,
    ) -> Release | None:
        """An alias stands for a former version again, as an update to devices; a canary is withdrawn: None.

        Raises NotFound where there is no such version, or no former one.
        """
        current = self.release(model, target, alias)
        if current is None:
            raise NotFound(f"nothing is published as {pointer(model, target, alias)}")
        if alias == CANARY and version is None:
            self.repository.publish({pointer(model, target, CANARY): None})
            return None
        known = self.versions(model, target)
        at = next(i for i, one in enumerate(known) if one.manifest.sha256 == current.manifest.sha256)
        former = known[:at] if version is None else [one for one in known if one.version == version]
        if not former:
            held = ", ".join(str(one.version) for one in known)
            raise NotFound(
                f"the channel holds no former version to go back to; of {model} for {target} it has {held}"
            )
        share = self.metadata.custom(pointer(model, target, alias)).get("share_ppm", MILLION)
        return self.point(model, target, alias, former[-1], share, progress)

    def point(
        self, model: str, target: str, alias: str, known: Known, share_ppm: int, progress: Progress = silent
    ) -> Release:
        """Signs the release of ``known`` for an alias, with differences from the versions that devices may have."""
        if alias not in (CHAMPION, CANARY):
            raise InvalidInput(
                f"{alias!r} is no alias of a channel; {CHAMPION} and {CANARY} are", param="alias"
            )
        if not 0 < share_ppm <= MILLION or (alias == CHAMPION and share_ppm != MILLION):
            raise InvalidInput(
                f"a share of {share_ppm / MILLION:.4%}: a canary is for more than 0% and at most 100% of the devices, "
                "and the champion for all",
                param="share",
            )
        if alias == CANARY and self.release(model, target, CHAMPION) is None:
            raise Conflict(
                f"publish a champion of {model} for {target} first: devices outside the share follow it"
            )
        before = self.versions(model, target)
        after = before if known in before else self._bounded([*before, known], model, target)
        serve = self._serving(model, target) | {alias: (known, share_ppm)}
        if CANARY in serve and serve[CANARY][0] == serve[CHAMPION][0]:
            del serve[CANARY]  # it has become what all devices get
        changed: dict[str, tuple[bytes, dict[str, Any]] | None] = {
            f"{model}/{target}/{VERSIONS}": (Versions(versions=tuple(after)).model_dump_json().encode(), {}),
            pointer(model, target, CANARY): None,
        }
        deltas = Deltas(self.blobs, [one for served in serve if (one := self.release(model, target, served))])
        releases: dict[str, Release] = {}
        for served, (one, share) in serve.items():
            releases[served] = self._release(one, serve, after, deltas, progress)
            said: dict[str, Any] = {"version": one.version, "digest": one.digest}
            if served == CANARY:
                said["share_ppm"] = share
            changed[pointer(model, target, served)] = (
                releases[served].model_dump_json(exclude_none=True).encode(), said,
            )  # fmt: skip
        self.repository.publish(changed)
        return releases[alias] if alias in releases else releases[CHAMPION]

    def refresh(self) -> list[str]:
        """Signs anew what is due, and removes files that no version needs; returns the roles signed."""
        signed = self.repository.refresh()
        self.sweep()
        return signed

    def sweep(self) -> int:
        """Removes what no version of the channel needs; returns how many files."""
        kept: set[str] = set()
        for path in self.repository.targets.signed.targets:
            model, target, name = path.split("/")
            if name == VERSIONS:
                for known in self.versions(model, target):
                    kept |= {known.manifest.sha256, *(one.sha256 for one in self.manifest(known).files)}
            elif release := self.release(model, target, name.removesuffix(".json")):
                kept |= {one.sha256 for file in release.files for one in file.deltas}
        return self.blobs.sweep(kept) + self.repository.sweep()

    def _serving(self, model: str, target: str) -> dict[str, tuple[Known, int]]:
        """Each alias, the version that it stands for, and for which share of the devices, in millionths."""
        found: dict[str, tuple[Known, int]] = {}
        for alias in (CHAMPION, CANARY):
            if release := self.release(model, target, alias):
                share = self.metadata.custom(pointer(model, target, alias)).get("share_ppm", MILLION)
                listed = (
                    one
                    for one in self.versions(model, target)
                    if one.manifest.sha256 == release.manifest.sha256
                )
                found[alias] = next(listed), share
        return found

    def _bounded(self, versions: list[Known], model: str, target: str) -> tuple[Known, ...]:
        """The newest KEPT, and those that an alias stands for."""
        served = [known for known, _ in self._serving(model, target).values()]
        return tuple(one for one in versions if one in served or one in versions[-KEPT:])

    def _release(
        self, known: Known, serve: Mapping[str, tuple[Known, int]], held: Sequence[Known], deltas: Deltas,
        progress: Progress,
    ) -> Release:  # fmt: skip
        """With differences from what is served beside it, and from the newest before."""
        served = [one for one, _ in serve.values() if one != known]
        bases = [*served, *(one for one in reversed(held) if one != known and one not in served)][:FROM]
        manifests = [self.manifest(one) for one in bases]
        manifest = self.manifest(known)
        files = [
            File(path=MANIFEST, **known.manifest.model_dump()),
            *(File(**one.model_dump()) for one in manifest.files),
        ]
        for at, file in enumerate(files):
            progress(f"comparing {file.path} of version {known.version} with former ones", at / len(files))
            files[at] = file.model_copy(update={"deltas": deltas.of(file, manifest, manifests)})
        said = manifest.model_dump(include={"model", "target", "version", "digest"})
        return Release(**said, files=tuple(files))


@contextmanager
def opened(channel: Path, keys: Keys, now: datetime | None = None) -> Iterator[Publisher]:
    """The channel, for one publisher alone. Raises Conflict where another has it."""
    with locked(keys):
        yield Publisher(Repository(channel, keys, now))


def init(channel: Path, keys: Keys, threshold: int = 1, now: datetime | None = None) -> Publisher:
    """A new channel; see :func:`deploy.updates.metadata.create`."""
    with locked(keys):
        return Publisher(create(channel, keys, threshold, now))


@contextmanager
def locked(keys: Keys) -> Iterator[None]:
    keys.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FileLock(keys.folder / "publisher.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Conflict("another publisher works on this channel; wait until it has ended") from None
    try:
        yield
    finally:
        lock.release()


def read_edge(folder: Path) -> bytes:
    """edge.json of a folder. Raises NotFound."""
    try:
        return (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{folder} is no edge folder: it has no {MANIFEST}") from None

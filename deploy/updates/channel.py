"""What a channel holds: which versions, which of them an alias stands for, and what an update to it takes."""

from __future__ import annotations

from pathlib import Path

from deploy.updates.blobs import Blobs
from deploy.updates.metadata import ChannelMetadata
from deploy.updates.release import (
    VERSIONS,
    Blob,
    Manifest,
    Record,
    Release,
    parse,
    pointer,
    read_manifest,
    read_release,
)


class Known(Record):
    """A version that the channel holds: what edge.json says of it, and its bytes."""

    version: int
    digest: str
    manifest: Blob


class Versions(Record):
    """The versions of a model for a target, the newest publication last."""

    versions: tuple[Known, ...] = ()


class Channel:
    """A channel, to read."""

    def __init__(self, metadata: ChannelMetadata) -> None:
        self.metadata = metadata
        self.blobs = Blobs(metadata.channel)

    def versions(self, model: str, target: str) -> tuple[Known, ...]:
        """What the channel holds of a model for a target, the newest publication last."""
        raw = self.metadata.read(f"{model}/{target}/{VERSIONS}")
        return parse(Versions, raw, "the channel's versions").versions if raw else ()

    def release(self, model: str, target: str, alias: str) -> Release | None:
        """What an alias stands for."""
        raw = self.metadata.read(pointer(model, target, alias))
        return read_release(raw) if raw else None

    def find(self, model: str, target: str, digest: str) -> Known | None:
        """The version that was made of the bundle with this digest."""
        return next((one for one in self.versions(model, target) if one.digest == digest), None)

    def manifest(self, known: Known) -> Manifest:
        """What its edge.json says."""
        raw = self.blobs.read(known.manifest)
        return read_manifest(raw, f"edge.json of version {known.version}")

    def update_bytes(self, release: Release) -> dict[str, int]:
        """The bytes that a device asks for, by what it has: ``nothing``, or a version."""
        has: dict[str, set[str]] = {"nothing": set()}
        for known in self.versions(release.model, release.target):
            if known.manifest.sha256 != release.manifest.sha256:
                has[f"version {known.version}"] = {one.sha256 for one in self.manifest(known).files}
        return {
            name: sum(file.ways(here)[0].bytes for file in release.files if file.sha256 not in here)
            for name, here in has.items()
        }


def open_channel(folder: Path) -> Channel:
    """A channel, to read. Raises NotFound where there is none, Corrupt where it is not what was signed."""
    return Channel(ChannelMetadata(folder))

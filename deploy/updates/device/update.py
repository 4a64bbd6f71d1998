"""One update of a device: the channel's news, the files by the fewest bytes, verified, then current."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api.exceptions import (
    DownloadError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.ngclient import Updater, UpdaterConfig
from urllib3.exceptions import HTTPError

from deploy.updates.device.fetch import fetch
from deploy.updates.device.probes import refuse_other_numbers
from deploy.updates.device.store import Device
from deploy.updates.device.transport import MetadataFetcher, Transport
from deploy.updates.metadata import FOLDER, TARGETS
from deploy.updates.release import (
    CANARY,
    CHAMPION,
    MANIFEST,
    MAX_RELEASE_BYTES,
    Release,
    pointer,
    read_manifest,
    read_release,
    takes_canary,
)
from everlearn.errors import Corrupt, NotFound, Unavailable
from everlearn.progress import Progress, silent


@dataclass(frozen=True)
class Updated:
    """What an update did. ``folder``: to serve from now on; ``changed``: whether it is another one than before."""

    folder: Path
    version: int
    alias: str
    changed: bool
    received_bytes: int = 0


def update(
    device: Device, progress: Progress = silent, verify: Callable[[Path], None] = refuse_other_numbers
) -> Updated:
    """Brings a device to what the channel says, or leaves it as it is.

    Raises Unavailable where the channel does not answer, its signatures have expired, the disk is full or the version
    could not be run now, and Corrupt for metadata or files that are not what was signed, older metadata included, and
    for a version whose numbers are others here. That one alone is not fetched again.
    """
    with device.locked(), disk_of(device):
        progress("asking the channel", None)
        release, alias = newest(device)
        state = device.state
        if release.name in (state.current, state.refused):
            if state.current is None:
                raise Corrupt(f"version {release.version} was refused here, and there is no other one yet")
            kept = read_manifest((device.current() / MANIFEST).read_bytes())
            return Updated(device.current(), kept.version, alias, changed=False)
        received = fetch(device, release, progress)
        staged = device.staging / release.name
        progress("comparing logits with the manifest's", None)
        try:
            verify(staged)
        except Corrupt:
            device.refuse(release.name)
            shutil.rmtree(device.staging, ignore_errors=True)
            raise
        device.take(staged, release.name)
        return Updated(device.current(), release.version, alias, changed=True, received_bytes=received)


@contextmanager
def disk_of(device: Device) -> Iterator[None]:
    """Raises Unavailable where the disk fails; where it is full, what was fetched goes, so that what runs has room."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise Unavailable(f"{device.folder} cannot be updated: {error}") from None
        shutil.rmtree(device.staging, ignore_errors=True)
        raise Unavailable(f"the disk of {device.folder} is full: make room there, and update again") from None


def newest(device: Device) -> tuple[Release, str]:
    """The release that this device shall have, from metadata that was verified, and the alias that it is of."""
    followed, metadata = device.followed, device.folder / "metadata"
    base = followed.url.rstrip("/")
    metadata.mkdir(exist_ok=True)
    releases = device.folder / "releases"
    releases.mkdir(exist_ok=True)
    try:
        updater = Updater(
            str(metadata),
            f"{base}/{FOLDER}/",
            str(releases),
            f"{base}/{TARGETS}/",
            fetcher=MetadataFetcher(Transport()),
            config=UpdaterConfig(),
            bootstrap=(device.folder / "root.json").read_bytes(),
        )
        updater.refresh()
        alias = chosen(device, updater)
        info = updater.get_targetinfo(pointer(followed.model, followed.target, alias))
        if info is None:
            raise NotFound(f"the channel {base} has no {followed.model} for {followed.target}")
        if info.length > MAX_RELEASE_BYTES:
            raise Corrupt(f"a release of {info.length} bytes; at most {MAX_RELEASE_BYTES} are read")
        raw = Path(updater.find_cached_target(info) or updater.download_target(info)).read_bytes()
    except ExpiredMetadataError as error:
        raise Unavailable(
            f"the channel's signatures have expired ({error}): its publisher must refresh them, or somebody holds back news"
        ) from None
    except (RepositoryError, DownloadLengthMismatchError) as error:
        raise Corrupt(
            f"the channel {base} is not what was signed, or is older than what was seen: {error}"
        ) from None
    except (DownloadError, HTTPError) as error:
        raise Unavailable(f"the channel {base} does not answer: {error}") from None
    release = read_release(raw)
    if (release.model, release.target) != (followed.model, followed.target):
        raise Corrupt(f"the release is of {release.model} for {release.target}, not of what is followed")
    return release, alias


def chosen(device: Device, updater: Any) -> str:
    """Whether this device takes the canary, where there is one."""
    canary = updater.get_targetinfo(pointer(device.followed.model, device.followed.target, CANARY))
    if canary is None:
        return CHAMPION
    said = canary.custom or {}
    digest, share = said.get("digest"), said.get("share_ppm")
    if not isinstance(digest, str) or not isinstance(share, int):
        raise Corrupt("the channel's canary names no share of devices")
    return CANARY if takes_canary(device.id(), digest, share) else CHAMPION

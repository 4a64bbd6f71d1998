"""The files of a release, put together in the staging folder: each by the fewest bytes, and compared with its sha256."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from deploy.updates.blobs import READ_BYTES, sha256_of
from deploy.updates.delta import apply_delta
from deploy.updates.device.download import Downloads
from deploy.updates.device.store import Device
from deploy.updates.release import MANIFEST, Blob, Delta, File, Release, read_manifest
from everlearn.errors import Corrupt, Unavailable
from everlearn.progress import Progress

SPARE_BYTES = 16 << 20
"""Left free on the disk."""


def fetch(device: Device, release: Release, progress: Progress) -> int:
    """Makes the release's folder in staging, edge.json last; returns how many bytes came.

    An update that broke off left files there: those that are right are kept. Raises Corrupt and Unavailable.
    """
    staged = device.staging / release.name
    if device.staging.exists():
        for other in device.staging.iterdir():
            if other.name not in (release.name, "downloads"):
                shutil.rmtree(other)  # of a version that the channel has left since
    here = present(device)
    missing = [one for one in release.files if not is_there(staged / one.path, one)]
    refuse_full_disk(device.folder, [one for one in missing if one.sha256 not in here])
    staged.mkdir(parents=True, exist_ok=True)
    downloads = Downloads(device.followed.url, device.staging / "downloads")
    total = max(1, sum(one.ways(here)[0].bytes for one in missing if one.sha256 not in here))
    for file in sorted(missing, key=lambda one: one.path == MANIFEST):

        def told(_: int, path: str = file.path) -> None:
            progress(f"fetching {path}", min(1.0, downloads.received_bytes / total))

        obtain(file, here, staged / file.path, downloads, told)
    return downloads.received_bytes


def present(device: Device) -> dict[str, Path]:
    """Files of the current and the last good version by the sha256 that their manifests list."""
    state, found = device.state, dict[str, Path]()
    for name in (state.previous, state.current):
        folder = device.versions / str(name)
        if name and (folder / MANIFEST).exists():
            listed = read_manifest((folder / MANIFEST).read_bytes()).files
            found |= {one.sha256: folder / one.path for one in listed if (folder / one.path).exists()}
            found[sha256_of(folder / MANIFEST)] = folder / MANIFEST
    return found


def obtain(
    file: File, here: dict[str, Path], out: Path, downloads: Downloads, told: Callable[[int], None]
) -> None:
    """Puts one file in place. Where what is here is broken, or a delta is, it goes on with the next larger way.

    Raises Corrupt where none of them gives the bytes that were signed.
    """
    beside = out.with_name(f".{out.name}.part")
    faults: list[str] = []
    if file.sha256 in here:
        link(here[file.sha256], beside)
        if settle(beside, file, out):
            return
        faults.append(f"{here[file.sha256]} has changed")
    for way in file.ways(here):
        try:
            make(file, way, here, beside, downloads, told)
        except Corrupt as fault:
            faults.append(fault.message)
            continue
        if settle(beside, file, out):
            return
        faults.append(f"{way.sha256} makes other bytes")
    raise Corrupt(f"{file.path} cannot be had as it was signed: {'; '.join(faults)}")


def make(
    file: File,
    way: Blob,
    here: dict[str, Path],
    beside: Path,
    downloads: Downloads,
    told: Callable[[int], None],
) -> None:
    """Writes to ``beside`` what ``way`` makes. Raises Corrupt."""
    fetched = downloads.fetch(way, told)
    if isinstance(way, Delta):
        with beside.open("wb") as out:
            apply_delta(fetched, here[way.base] if way.base else None, out, file.bytes)
        fetched.unlink()
    else:
        os.replace(fetched, beside)


def settle(beside: Path, blob: Blob, out: Path) -> bool:
    """Moves a file into its place if its bytes are the right ones; whether they were."""
    if not is_there(beside, blob):
        beside.unlink(missing_ok=True)
        return False
    os.replace(beside, out)
    return True


def link(source: Path, target: Path) -> None:
    """The same bytes under another name: a hard link where the disk has them, else a copy."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as one, target.open("wb") as other:
            shutil.copyfileobj(one, other, READ_BYTES)


def is_there(path: Path, blob: Blob) -> bool:
    """Whether a file has the bytes of a blob."""
    return path.exists() and path.stat().st_size == blob.bytes and sha256_of(path) == blob.sha256


def refuse_full_disk(folder: Path, new: list[File]) -> None:
    """Raises Unavailable where the files, and the largest download beside them, would not fit."""
    needed = sum(one.bytes for one in new) + max((one.bytes for one in new), default=0) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Unavailable(
            f"{free / 1e6:.0f} MB are free under {folder}, and this update needs {needed / 1e6:.0f} MB: "
            "make room there, and update again"
        )

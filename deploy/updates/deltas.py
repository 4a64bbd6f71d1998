"""The differences that a release offers for each of its files, made once and kept among the channel's blobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import BinaryIO

from deploy.updates.blobs import Blobs
from deploy.updates.delta import write_delta
from deploy.updates.release import Blob, Delta, File, Manifest, Release


class Deltas:
    """Makes differences; those that ``releases`` name are there already, for the way back, too."""

    def __init__(self, blobs: Blobs, releases: Iterable[Release]) -> None:
        self.blobs = blobs
        self.made: dict[tuple[str | None, str], Blob] = {}
        for release in releases:
            for file in release.files:
                self.made |= {(one.base, file.sha256): one for one in file.deltas}

    def of(self, file: File, manifest: Manifest, bases: Sequence[Manifest]) -> tuple[Delta, ...]:
        """Smaller ways to a file: compressed alone, and from the files of its name in ``bases``."""
        tensors = manifest.tensors.get(file.path, ())
        alone = self._blob(None, file, partial(write_delta, target=self.blobs.path(file.sha256)))
        found = {None: alone} if alone.bytes < file.bytes else {}
        least = min(file.bytes, alone.bytes)
        for base in bases:
            former = next((one for one in base.files if one.path == file.path), None)
            if not tensors or former is None or former.sha256 == file.sha256 or former.sha256 in found:
                continue
            fill = partial(
                write_delta, target=self.blobs.path(file.sha256), base=self.blobs.path(former.sha256),
                tensors=tensors, base_tensors=base.tensors.get(file.path, ()),
            )  # fmt: skip
            alike = tensors == base.tensors.get(file.path) and former.bytes == file.bytes
            delta = self._blob(former.sha256, file, fill, alike)
            if delta.bytes < least:
                found[former.sha256] = delta
        return tuple(Delta(base=base, bytes=one.bytes, sha256=one.sha256) for base, one in found.items())

    def _blob(
        self, base: str | None, file: File, fill: Callable[[BinaryIO], None], alike: bool = False
    ) -> Blob:
        """The difference from ``base``, made only where it is not there. ``alike``: the way back is the same one."""
        made = self.made.get((base, file.sha256)) or (
            self.made.get((file.sha256, base)) if alike and base else None
        )
        if made is None or not self.blobs.path(made.sha256).exists():
            made = self.blobs.write(fill)
        self.made[base, file.sha256] = made
        return made

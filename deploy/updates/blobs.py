"""Files of a channel by the sha256 of their bytes: each is there once, and is never changed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO

from deploy.updates.public_files import FILE_MODE, make_public_folder
from deploy.updates.release import Blob
from everlearn.bundles.durable import sync_directory
from everlearn.errors import Corrupt

FOLDER = "blobs"
READ_BYTES = 1 << 20


class Blobs:
    """``blobs/`` of a channel."""

    def __init__(self, channel: Path) -> None:
        self.folder = channel / FOLDER

    def path(self, sha256: str) -> Path:
        return self.folder / sha256

    def add(self, source: Path, expected: str) -> Blob:
        """Copies a file. Raises Corrupt where its sha256 is not ``expected``."""
        there = self.path(expected)
        if there.exists() and sha256_of(source) == sha256_of(there) == expected:
            return Blob(bytes=there.stat().st_size, sha256=expected)
        return self.write(lambda out: copy(source, out), expected)

    def write(self, fill: Callable[[BinaryIO], None], expected: str | None = None) -> Blob:
        """Adds what ``fill`` writes: on disk whole, or not at all."""
        make_public_folder(self.folder, self.folder.parent)
        with NamedTemporaryFile(dir=self.folder, prefix=".", delete=False) as beside:
            try:
                fill(beside)  # type: ignore[arg-type]
                beside.flush()
                os.fchmod(beside.fileno(), FILE_MODE)
                os.fsync(beside.fileno())
                blob = Blob(bytes=os.fstat(beside.fileno()).st_size, sha256=sha256_of(Path(beside.name)))
                if expected and blob.sha256 != expected:
                    raise Corrupt(f"sha256 {blob.sha256}, and the manifest says {expected}")
                os.replace(beside.name, self.path(blob.sha256))
            except BaseException:
                Path(beside.name).unlink(missing_ok=True)
                raise
        sync_directory(self.folder)
        return blob

    def read(self, blob: Blob) -> bytes:
        """The bytes of a small one. Raises Corrupt where they are not those."""
        raw = self.path(blob.sha256).read_bytes() if self.path(blob.sha256).exists() else b""
        if hashlib.sha256(raw).hexdigest() != blob.sha256:
            raise Corrupt(f"{self.path(blob.sha256)} is missing, or its bytes have changed")
        return raw

    def sweep(self, kept: set[str]) -> int:
        """Removes every blob but ``kept``, and what a killed publisher left; returns how many."""
        gone = [file for file in self.folder.iterdir() if file.name not in kept]
        for file in gone:
            file.unlink()
        return len(gone)


def copy(source: Path, out: BinaryIO) -> None:
    with source.open("rb") as file:
        shutil.copyfileobj(file, out, READ_BYTES)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

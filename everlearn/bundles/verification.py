"""Remembers that a bundle's bytes were verified, so that a start does not read gigabytes twice.

Beside the verified directory lies ``<directory>.verified``: for every file its size, inode and the times of its
last change. The kernel sets the time of change itself, so an edited file never matches its line.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from everlearn.bundles.durable import write_file


def is_verified(directory: Path, digest: str) -> bool:
    """Whether ``directory`` was verified as the bundle ``digest`` and no file in it has changed since."""
    with suppress(OSError, ValueError):
        return json.loads(_record(directory).read_bytes()) == {
            "digest": digest,
            "files": _fingerprint(directory),
        }
    return False


def remember_verified(directory: Path, digest: str) -> None:
    """Records that this very state of ``directory`` is the bundle ``digest``.

    Where that cannot be written (a full disk, a read-only one), the next opening reads the bytes again.
    """
    with suppress(OSError):
        content = json.dumps({"digest": digest, "files": _fingerprint(directory)})
        write_file(_record(directory), content.encode())


def forget_verified(directory: Path) -> None:
    """Makes the next opening read every byte again."""
    _record(directory).unlink(missing_ok=True)


def _record(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.verified")


def _fingerprint(directory: Path) -> dict[str, list[int]]:
    """Every entry below ``directory``, links as themselves."""
    found: dict[str, list[int]] = {}
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            stat = os.lstat(path)
            times = [] if name in folders else [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
            found[os.path.relpath(path, directory)] = [stat.st_mode, stat.st_ino, *times]
    return found

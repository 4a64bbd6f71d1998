"""Writes that survive a crash: beside, flushed to disk, then renamed into place."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import NamedTemporaryFile


def write_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """``path`` holds either its former content or all of ``content``, in this mode, whenever the machine stops."""
    with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as beside:
        try:
            beside.write(content)
            beside.flush()
            os.fchmod(beside.fileno(), mode)
            os.fsync(beside.fileno())
            os.replace(beside.name, path)
        except BaseException:
            Path(beside.name).unlink(missing_ok=True)
            raise
    sync_directory(path.parent)


def sync_tree(directory: Path) -> None:
    """Flushes every file and folder below ``directory``, and itself."""
    for folder, _, files in os.walk(directory, topdown=False):
        for name in files:
            _sync(Path(folder, name), os.O_RDONLY)
        sync_directory(Path(folder))


def sync_directory(directory: Path) -> None:
    """Makes names created, renamed or removed in ``directory`` durable."""
    _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def move_directory(source: Path, target: Path) -> None:
    """Renames a flushed directory. Raises OSError where ``target`` exists or lies on another disk."""
    os.rename(source, target)
    sync_directory(target.parent)
    if source.parent != target.parent:
        sync_directory(source.parent)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Unique folders to build a bundle in; a killed process's folders are cleared by the next one."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

GLOB = "stage-*.lock"


@contextmanager
def staging_directory(parent: Path) -> Generator[Path]:
    """A new empty folder, readable by its owner alone, that is gone at the end.

    A lock that dies with its process says whose folder is still in use.
    """
    name = f"stage-{secrets.token_hex(8)}"
    own = FileLock(parent / f"{name}.lock", thread_local=False)
    directory = parent / name
    with _gate(parent):  # no sweep between a folder's lock file and the lock on it
        own.acquire()
    try:
        directory.mkdir(mode=0o700)
        yield directory
    finally:
        _clear(directory)
        own.release()


def sweep_staging(parent: Path) -> int:
    """Clears the folders whose process is gone; returns how many."""
    if next(parent.glob(GLOB), None) is None:
        return 0
    cleared = 0
    with _gate(parent):
        for file in parent.glob(GLOB):
            lock = FileLock(file, thread_local=False)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            _clear(file.with_suffix(""))
            lock.release()
            cleared += 1
    return cleared


def _clear(directory: Path) -> None:
    """The lock file goes last: while it is there, a later sweep tries again."""
    shutil.rmtree(directory, ignore_errors=True)
    if not directory.exists():
        directory.with_suffix(".lock").unlink(missing_ok=True)


def _gate(parent: Path) -> FileLock:
    return FileLock(parent / "gate.lock")

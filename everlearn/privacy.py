"""Keep an installation's files readable by their owner alone: answers, training text, hashes of keys, logs of jobs."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

OTHERS = stat.S_IRWXG | stat.S_IRWXO
_UMASK: list[int] = []
"""The user's own, once `keep_private` has changed it."""


def keep_private() -> None:
    """What this process and its children create from now on, whoever writes it, is for their user alone.

    For programs, as their first act: it changes the umask. What the user asked for by its path goes through `share`.
    """
    _UMASK.append(os.umask(OTHERS))


def share(file: Path) -> None:
    """Gives a file that the user named, for other programs to read, the mode that their own umask allows."""
    if _UMASK:
        file.chmod(0o666 & ~_UMASK[0])


def share_folder(folder: Path) -> None:
    """The same of a folder and of everything in it."""
    if _UMASK:
        folder.chmod(0o777 & ~_UMASK[0])
        for one in folder.iterdir():
            share_folder(one) if one.is_dir() else share(one)


def make_private(path: Path) -> None:
    """Takes from group and others what they may do with a file, or with a folder and all that is in it.

    Links are left alone, and so is what belongs to another user or is gone meanwhile.
    """
    _close(path)
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            _close(Path(folder, name))


def create_private(file: Path) -> None:
    """An empty file for its owner alone, where there is none; one that is there is closed to others.

    It is never opened then: closing it would end the locks that SQLite has on it in this process.
    """
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        _close(file)


def _close(path: Path) -> None:
    with suppress(FileNotFoundError, PermissionError, NotADirectoryError):
        mode = path.lstat().st_mode
        if mode & OTHERS and not stat.S_ISLNK(mode):
            path.chmod(stat.S_IMODE(mode) & ~OTHERS)

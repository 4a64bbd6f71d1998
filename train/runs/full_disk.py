"""A disk that takes nothing more: told as what it is, where it is, and what to do."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from everlearn.errors import Unavailable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE = os.strerror(errno.ENOSPC)
_TEXTS = tuple(os.strerror(code) for code in FULL)


def why_not_written(error: BaseException, folder: Path, size_bytes: int) -> str:
    """Why a file of ``size_bytes`` was not written: libraries' own words, but where the disk is full, those."""
    text = str(error).strip() or type(error).__name__
    if not any(known in text for known in _TEXTS) and shutil.disk_usage(folder).free < size_bytes:
        return NO_SPACE
    return text


@contextmanager
def full_disk_told(folder: Path) -> Generator[None]:
    """Raises Unavailable for what the disk of ``folder`` refused, with what to do where it is full."""
    try:
        yield
    except Unavailable as error:
        if not any(known in error.message for known in _TEXTS):
            raise
        raise Unavailable(f"{error.message}. {_remedy(folder)}", param=error.param) from None
    except OSError as error:
        said = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
        remedy = f". {_remedy(folder)}" if error.errno in FULL else ""
        raise Unavailable(f"{folder}: {said}{remedy}") from error


def _remedy(folder: Path) -> str:
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(there).free
    return (
        f"The disk of {folder} has {free / 1e6:.1f} MB free: make room and give the same command again, which goes on "
        "from what is whole"
    )

"""The address of Redis or Valkey: REDIS_URL, or the home's own server on a unix socket."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from everlearn.errors import Unavailable
from everlearn.settings import Settings

MAX_SOCKET_BYTES = 100
SOCKET_NAME = "valkey.sock"


def redis_url(settings: Settings) -> str:
    """As redis-py reads it. Raises Unavailable."""
    return settings.redis_url or f"unix://{own_socket(settings)}"


def own_socket(settings: Settings) -> Path:
    """In the home's ``run`` folder, or in a private one under a short path: the system allows about 100 bytes."""
    path = settings.directory("run") / SOCKET_NAME
    if len(os.fsencode(path)) <= MAX_SOCKET_BYTES:
        return path
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"everlearn-{os.getuid()}-{digest}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise Unavailable(f"{folder} is another user's: set EVERLEARN_HOME to a shorter path")
    return folder / SOCKET_NAME

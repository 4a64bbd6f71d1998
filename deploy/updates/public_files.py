"""Files and folders that a channel's server may read as any user, whatever the publisher's umask is."""

from __future__ import annotations

from pathlib import Path

from everlearn.bundles.durable import write_file

FILE_MODE = 0o644
FOLDER_MODE = 0o755


def make_public_folder(folder: Path, channel: Path) -> None:
    """A folder of ``channel``, or the channel itself, and those between them."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in (folder, *folder.parents):
        mode = one.stat().st_mode
        if mode & FOLDER_MODE != FOLDER_MODE:
            one.chmod(mode | FOLDER_MODE)
        if one == channel:
            return


def write_public(file: Path, content: bytes) -> None:
    """Writes durably."""
    write_file(file, content, FILE_MODE)

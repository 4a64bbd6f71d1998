"""Bytes of a channel by HTTP: no more than were promised, resumed where they broke off, compared with their sha256."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from urllib3.exceptions import HTTPError

from deploy.updates.blobs import FOLDER, sha256_of
from deploy.updates.device.transport import TRIES, Pace, Transport
from deploy.updates.release import Blob
from everlearn.errors import Corrupt, Unavailable

Told = Callable[[int], None]
"""Called with the number of bytes that came."""


class Downloads:
    """Blobs of the channel at ``url``, kept in ``folder``: those that broke off as ``SHA256.part``."""

    def __init__(self, url: str, folder: Path) -> None:
        self.base = f"{url.rstrip('/')}/{FOLDER}/"
        self.folder = folder
        self.transport = Transport()
        self.received_bytes = 0

    def fetch(self, blob: Blob, told: Told = lambda _: None) -> Path:
        """The file with these bytes.

        Raises Corrupt where others came, Unavailable where the channel does not answer, stays busy or is too slow.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        whole, part = self.folder / blob.sha256, self.folder / f"{blob.sha256}.part"
        if whole.exists() and sha256_of(whole) == blob.sha256:
            return whole
        part.touch()
        if part.stat().st_size > blob.bytes:
            part.unlink()
        tries, pace = 0, Pace(self.base + blob.sha256)
        while (had := part.stat().st_size if part.exists() else 0) < blob.bytes:
            try:
                self._continue(part, had, blob, told, pace)
                problem = "the connection ended early"
            except HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            tries = 0 if part.stat().st_size > had else tries + 1
            if tries == TRIES:
                raise Unavailable(
                    f"{self.base}{blob.sha256}: {problem}. What came is kept; update again to go on"
                )
        part.touch()
        if sha256_of(part) != blob.sha256:
            part.unlink()
            raise Corrupt(
                f"{self.base}{blob.sha256} sends other bytes than the channel's signed release lists"
            )
        os.replace(part, whole)
        return whole

    def _continue(self, part: Path, had: int, blob: Blob, told: Told, pace: Pace) -> None:
        """Appends what the server sends from byte ``had`` on."""
        answer = self.transport.get(pace, {"range": f"bytes={had}-"} if had else {})
        try:
            if answer.status not in (200, 206):
                raise Unavailable(f"{self.base}{blob.sha256} answers {answer.status}")
            resumed = answer.status == 206 and answer.headers.get("content-range", "").startswith(
                f"bytes {had}-"
            )
            with part.open("ab" if resumed else "wb") as file:
                left = blob.bytes - (had if resumed else 0)
                for piece in self.transport.pieces(answer, pace):
                    file.write(piece[:left])
                    self.received_bytes += len(piece)
                    told(len(piece))
                    if (left := left - len(piece)) <= 0:
                        return
        finally:
            answer.close()

"""Private keys of a channel: one Ed25519 key per file, mode 0600, in folders outside of what is published.

A role's keys lie in the folder of its name. The root's may lie elsewhere, as on media that are plugged in for a rotation
alone: each folder that is named holds one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from everlearn.bundles.durable import write_file
from everlearn.errors import Conflict, InvalidInput, NotFound
from everlearn.privacy import OTHERS

ROOT = "root"
ONLINE = ("targets", "snapshot", "timestamp")
"""Roles whose keys sign what is published."""
ROLES = (ROOT, *ONLINE)


class Keys:
    """The folders of private keys. Raises InvalidInput where one of them lies within the channel."""

    def __init__(self, folder: Path, channel: Path, root_folders: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.root_folders = tuple(root_folders) or (folder / ROOT,)
        for place in (folder, *self.root_folders):
            if place.resolve().is_relative_to(channel.resolve()):
                raise InvalidInput(
                    f"{place} lies within the channel, which everybody reads: keep keys elsewhere"
                )
            if channel.resolve().is_relative_to(place.resolve()):
                raise InvalidInput(f"{channel} lies within the folder of its keys: publish another folder")

    def folders(self, role: str) -> tuple[Path, ...]:
        """Where a role's keys lie."""
        return self.root_folders if role == ROOT else (self.folder / role,)

    def create(self, role: str) -> list[CryptoSigner]:
        """Makes and stores one new key of a role for each of its folders."""
        made = []
        for folder in self.folders(role):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            signer = CryptoSigner.generate_ed25519()
            write_file(folder / f"{signer.public_key.keyid}.pem", signer.private_bytes)  # its mode is 0600
            made.append(signer)
        return made

    def of(self, role: str, keyids: Iterable[str]) -> list[CryptoSigner]:
        """Those of a role's keys that are here. Raises Conflict for a file that others may read."""
        return [load(file) for file in self.files(role) if file.stem in set(keyids)]

    def only(self, role: str, keyids: Iterable[str]) -> CryptoSigner:
        """A key that signs for a role. Raises NotFound."""
        found = self.of(role, keyids)
        if not found:
            where = " or ".join(str(one) for one in self.folders(role))
            raise NotFound(f"no key in {where} signs for {role}: name the folder of this channel's keys")
        return found[0]

    def forget(self, role: str, keyids: Iterable[str]) -> None:
        """Removes keys that sign for nothing any more, where they are here."""
        for file in self.files(role):
            if file.stem in set(keyids):
                file.unlink()

    def files(self, role: str) -> list[Path]:
        return [file for folder in self.folders(role) for file in sorted(folder.glob("*.pem"))]


def load(file: Path) -> CryptoSigner:
    """Raises Conflict for a file that others may read, and InvalidInput for one that holds no Ed25519 key."""
    if file.stat().st_mode & OTHERS:
        raise Conflict(f"others may read {file}, a private key: chmod 600 {file}, and rotate the role's keys")
    try:
        return CryptoSigner(load_pem_private_key(file.read_bytes(), password=None))  # type: ignore[arg-type]
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"{file} holds no private key that is known here: {error}") from None

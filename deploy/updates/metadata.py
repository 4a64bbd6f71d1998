"""The TUF repository of a channel: root, targets, snapshot and timestamp, signed with Ed25519.

Written so that a device finds the old state or the new one, whenever the publisher stops: files that are named by their
version first, ``timestamp.json`` last. See https://theupdateframework.github.io/specification/latest/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from deploy.updates.keys import ONLINE, ROLES, ROOT, Keys
from deploy.updates.public_files import make_public_folder, write_public
from everlearn.errors import Conflict, Corrupt, InvalidInput, NotFound

FOLDER, TARGETS = "metadata", "targets"
LIFE = {
    "root": timedelta(days=365),
    "targets": timedelta(days=90),
    "snapshot": timedelta(days=30),
    "timestamp": timedelta(days=3),
}
"""Until when a role's signature holds: the timestamp's is how long a device can be kept from news unnoticed."""

Payload = TypeVar("Payload", Root, Snapshot, Targets, Timestamp)


class ChannelMetadata:
    """The metadata of a channel, as verified by its own root. Raises NotFound and Corrupt."""

    def __init__(self, channel: Path) -> None:
        self.channel, self.folder = channel, channel / FOLDER
        self.root = latest_root(self.folder)
        self.timestamp = self._signed("timestamp", "timestamp.json", Timestamp)
        snapshot = self.timestamp.signed.snapshot_meta.version
        self.snapshot = self._signed("snapshot", f"{snapshot}.snapshot.json", Snapshot)
        targets = self.snapshot.signed.meta["targets.json"].version
        self.targets = self._signed("targets", f"{targets}.targets.json", Targets)

    def _signed(self, role: str, name: str, kind: type[Payload]) -> Metadata[Payload]:
        """Raises Corrupt unless a key signed it that is, or was under the former root, the role's."""
        try:
            read: Metadata[Payload] = Metadata.from_bytes((self.folder / name).read_bytes())
            if not isinstance(read.signed, kind):
                raise RepositoryError(f"it is {read.signed.type}")
            if not any(signed_by(root, role, read) for root in self._roots()):
                raise RepositoryError(f"no key of {role} signed it")
        except (OSError, RepositoryError) as error:
            raise Corrupt(f"{self.folder / name}: {error}") from None
        return read

    def _roots(self) -> list[Metadata[Root]]:
        """The newest root, and the one before: a rotation that was killed left signatures of its keys."""
        former = self.folder / f"{self.root.signed.version - 1}.root.json"
        return [self.root, Metadata[Root].from_bytes(former.read_bytes())] if former.exists() else [self.root]

    def read(self, path: str) -> bytes | None:
        """The bytes of a target; None where there is none. Raises Corrupt where they are not what was signed."""
        target = self.targets.signed.targets.get(path)
        if target is None:
            return None
        raw = (self.channel / TARGETS / hashed(path, target)).read_bytes()
        try:
            target.verify_length_and_hashes(raw)
        except RepositoryError as error:
            raise Corrupt(f"{path}: {error}") from None
        return raw

    def custom(self, path: str) -> dict[str, Any]:
        """What the metadata says of a target beside its hash; empty where there is no such target."""
        target = self.targets.signed.targets.get(path)
        return dict(target.custom or {}) if target else {}


class Repository(ChannelMetadata):
    """The same for its publisher. ``now`` is when signatures are made."""

    def __init__(self, channel: Path, keys: Keys, now: datetime | None = None) -> None:
        super().__init__(channel)
        self.keys = keys
        self.now = (now or datetime.now(UTC)).replace(microsecond=0)

    def publish(self, changed: Mapping[str, tuple[bytes, dict[str, Any]] | None]) -> None:
        """Sets targets to bytes, with what else is said of them, or removes them; devices then see all of it at once."""
        targets = self.targets.signed.targets
        for path, entry in changed.items():
            if entry is None:
                targets.pop(path, None)
                continue
            content, custom = entry
            target = TargetFile.from_data(path, content, ["sha256"])
            target.unrecognized_fields["custom"] = custom
            file = self.channel / TARGETS / hashed(path, target)
            make_public_folder(file.parent, self.channel)
            write_public(file, content)
            targets[path] = target
        self.write("targets")

    def write(self, *renewed: str) -> None:
        """Signs anew the roles named, and those that list them: targets, then snapshot, then timestamp."""
        if "targets" in renewed:
            self._sign("targets", self.targets)
            meta = described(self.targets)
            self.snapshot.signed.meta["targets.json"] = meta
            write_public(self.folder / f"{meta.version}.targets.json", self.targets.to_bytes())
        if "targets" in renewed or "snapshot" in renewed:
            self._sign("snapshot", self.snapshot)
            self.timestamp.signed.snapshot_meta = meta = described(self.snapshot)
            write_public(self.folder / f"{meta.version}.snapshot.json", self.snapshot.to_bytes())
        self._sign("timestamp", self.timestamp)
        write_public(self.folder / "timestamp.json", self.timestamp.to_bytes())

    def _sign(self, role: str, metadata: Metadata[Any]) -> None:
        metadata.signed.version += 1
        metadata.signed.expires = self.now + LIFE[role]
        metadata.sign(self.keys.only(role, self.root.signed.roles[role].keyids))

    def refresh(self) -> list[str]:
        """Signs the timestamp anew, and what is past half of its life or is no longer signed by its role's key.

        The root is, where enough of its keys are here. Returns the roles that were signed. Raises NotFound where a key
        that this takes is not here.
        """
        former = self.keys.of(ROOT, self.root.signed.roles[ROOT].keyids)
        enough = len(former) >= self.root.signed.roles[ROOT].threshold
        if renewed := enough and self.root.signed.expires - self.now < LIFE[ROOT] / 2:
            self._write_root(former)
        due = [role for role in ("targets", "snapshot") if self._is_due(role)]
        self.write(*due)
        return [*([ROOT] if renewed else []), *due, "timestamp"]

    def _is_due(self, role: str) -> bool:
        metadata: Metadata[Any] = getattr(self, role)
        return metadata.signed.expires - self.now < LIFE[role] / 2 or not signed_by(self.root, role, metadata)

    def sweep(self) -> int:
        """Removes metadata and targets that nothing refers to; a device may be reading the state before this one."""
        gone = 0
        for role in ("snapshot", "targets"):
            version = getattr(self, role).signed.version
            for file in self.folder.glob(f"*.{role}.json"):
                if int(file.name.partition(".")[0]) < version - 1:
                    file.unlink()
                    gone += 1
        named = {hashed(path, target) for path, target in self.targets.signed.targets.items()}
        folder = self.channel / TARGETS
        for file in folder.rglob("*.json"):
            if file.relative_to(folder).as_posix() not in named:
                file.unlink()
                gone += 1
        return gone

    def rotate(self, role: str) -> None:
        """New keys for a role; the former sign nothing any more. The root says so, signed by its threshold.

        The root's own keys: those of the folders named are replaced, and old and new ones sign together.
        Raises InvalidInput for another role, and Conflict where fewer of the root's keys are here than it takes.
        """
        if role not in ROLES:
            raise InvalidInput(f"{role!r} is no role; one of {', '.join(ROLES)} is")
        former = self.keys.of(ROOT, self.root.signed.roles[ROOT].keyids)
        replaced = list(self.root.signed.roles[role].keyids)
        if role == ROOT:
            replaced = [one.public_key.keyid for one in former]
        self._refuse_too_few(len(former))
        made = self.keys.create(role)
        for keyid in replaced:
            self.root.signed.revoke_key(keyid, role)
        for signer in made:
            self.root.signed.add_key(signer.public_key, role)
        self._write_root([*former, *(made if role == ROOT else ())])
        if role in ONLINE:
            self.write(role)
        self.keys.forget(role, replaced)

    def _refuse_too_few(self, here: int) -> None:
        if here < (needed := self.root.signed.roles[ROOT].threshold):
            raise Conflict(
                f"{here} of the root's keys are here, and {needed} must sign: name their folders (--root-keys)"
            )

    def _write_root(self, signers: list[Any]) -> None:
        self.root.signed.version += 1
        self.root.signed.expires = self.now + LIFE[ROOT]
        self.root.signatures.clear()
        for signer in signers:
            self.root.sign(signer, append=True)
        write_public(self.folder / f"{self.root.signed.version}.root.json", self.root.to_bytes())


def create(channel: Path, keys: Keys, threshold: int, now: datetime | None = None) -> Repository:
    """A new channel with keys of its own. Raises Conflict where there is one, InvalidInput for an odd threshold."""
    folder = channel / FOLDER
    if folder.exists() and any(folder.glob("*.root.json")):
        raise Conflict(f"{channel} is a channel already: publish to it, or name another folder")
    if not 1 <= threshold <= len(keys.root_folders):
        raise InvalidInput(
            f"a threshold of {threshold} takes as many keys of the root, and {len(keys.root_folders)} folders "
            "of them are named (--root-keys)"
        )
    moment = (now or datetime.now(UTC)).replace(microsecond=0)
    make_public_folder(folder, channel)
    root = Root(expires=moment + LIFE[ROOT], consistent_snapshot=True)
    made = {role: keys.create(role) for role in ROLES}
    for role, signers in made.items():
        for signer in signers:
            root.add_key(signer.public_key, role)
    root.roles[ROOT].threshold = threshold
    targets, snapshot = Metadata(Targets(expires=moment + LIFE["targets"])), Metadata(Snapshot())
    snapshot.signed.expires = moment + LIFE["snapshot"]
    timestamp = Metadata(Timestamp(expires=moment + LIFE["timestamp"]))
    targets.sign(made["targets"][0])
    snapshot.signed.meta["targets.json"] = described(targets)
    snapshot.sign(made["snapshot"][0])
    timestamp.signed.snapshot_meta = described(snapshot)
    timestamp.sign(made["timestamp"][0])
    whole = Metadata(root)
    for signer in made[ROOT]:
        whole.sign(signer, append=True)
    write_public(folder / "1.targets.json", targets.to_bytes())
    write_public(folder / "1.snapshot.json", snapshot.to_bytes())
    write_public(folder / "timestamp.json", timestamp.to_bytes())
    write_public(folder / "1.root.json", whole.to_bytes())
    return Repository(channel, keys, now)


def latest_root(folder: Path) -> Metadata[Root]:
    """The root of the highest number. Raises NotFound where there is none, Corrupt where it does not sign itself."""
    found = sorted(folder.glob("*.root.json"), key=lambda one: int(one.name.partition(".")[0]))
    if not found:
        raise NotFound(f"{folder.parent} is no channel: everlearn deploy channel init makes one")
    try:
        root = Metadata[Root].from_bytes(found[-1].read_bytes())
        root.verify_delegate(ROOT, root)  # type: ignore[attr-defined]
    except (RepositoryError, AttributeError, json.JSONDecodeError) as error:
        raise Corrupt(f"{found[-1]}: {error}") from None
    return root


def signed_by(root: Metadata[Root], role: str, metadata: Metadata[Any]) -> bool:
    return bool(root.signed.get_verification_result(role, metadata.signed_bytes, metadata.signatures))


def described(metadata: Metadata[Any]) -> MetaFile:
    """How the role above lists it: by version, length and sha256."""
    return MetaFile.from_data(metadata.signed.version, metadata.to_bytes(), ["sha256"])


def hashed(path: str, target: TargetFile) -> str:
    """Where a target lies, with its sha256 in its name: none is ever written over."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{target.hashes['sha256']}.{name}"

"""What a channel says of a version: its files, and the differences by which a device may get them.

A release is a target of the TUF metadata, so its bytes are signed; it names every file's sha256, so that what comes out
of a difference is checked, and not the difference alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from everlearn.errors import Corrupt

MANIFEST = "edge.json"
CHAMPION, CANARY = "champion", "canary"
VERSIONS = "versions.json"
MAX_RELEASE_BYTES = 4 << 20
MAX_MANIFEST_BYTES = 16 << 20
MILLION = 1_000_000

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Size = Annotated[int, Field(ge=0, le=1 << 40)]


Kind = TypeVar("Kind", bound=BaseModel)


class Record(BaseModel):
    """Immutable; keys that a later everlearn adds are passed over."""

    model_config = ConfigDict(frozen=True)


class Blob(Record):
    """Bytes of a channel, found by their sha256."""

    bytes: Size
    sha256: Sha256


class Delta(Blob):
    """A blob that makes a file of the one whose sha256 is ``base``; of nothing where that is None: compressed alone."""

    base: Sha256 | None = None


class File(Blob):
    """A file of an edge folder, whole, and smaller ways to get it."""

    path: FileName
    deltas: tuple[Delta, ...] = Field(default=(), max_length=64)

    def ways(self, here: Container[str]) -> list[Blob]:
        """What to ask for, for who has the files with the sha256s ``here``: deltas, or the file; fewest bytes first."""
        usable = [one for one in self.deltas if one.base is None or one.base in here]
        return sorted([*usable, self], key=lambda one: one.bytes)


class Release(Record):
    """A version of a model for a target. ``version`` and ``digest`` are the registry's."""

    format: Literal["everlearn-release/1"] = "everlearn-release/1"
    model: Name
    target: Name
    version: int
    digest: str = Field(max_length=128)
    files: tuple[File, ...] = Field(min_length=1, max_length=4096)

    @model_validator(mode="after")
    def _whole(self) -> Release:
        paths = [file.path for file in self.files]
        if len(set(paths)) != len(paths) or MANIFEST not in paths:
            raise ValueError(f"each file once, {MANIFEST} among them")
        return self

    @property
    def manifest(self) -> File:
        """``edge.json``, whose sha256 is the release's identity."""
        return next(file for file in self.files if file.path == MANIFEST)

    @property
    def name(self) -> str:
        """A folder's name for it."""
        return self.manifest.sha256[:32]


class EdgeFile(Blob):
    """A file that edge.json lists."""

    path: FileName


class Tensor(Record):
    """Where a tensor lies in a weights file, in bytes."""

    name: str
    offset: Size
    bytes: Size


class Manifest(Record):
    """What updates read of ``edge.json``."""

    format: Literal["everlearn-edge/1"]
    model: Name
    version: int
    digest: str
    target: Name
    files: tuple[EdgeFile, ...] = Field(min_length=1, max_length=4096)
    tensors: dict[str, tuple[Tensor, ...]] = {}


def read_release(raw: bytes) -> Release:
    """Raises Corrupt where it is none."""
    return parse(Release, raw, "the channel's release")


def read_manifest(raw: bytes, where: str = MANIFEST) -> Manifest:
    """Raises Corrupt where it is none."""
    return parse(Manifest, raw, where)


def parse(kind: type[Kind], raw: bytes, where: str) -> Kind:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise Corrupt(f"{where} is not what this program reads: {at}: {first['msg']}") from None


def pointer(model: str, target: str, alias: str) -> str:
    """The TUF target that holds the release of an alias."""
    return f"{model}/{target}/{alias}.json"


def takes_canary(device_id: str, digest: str, share_ppm: int) -> bool:
    """Whether a device is among the share that gets a canary, in millionths. Its id is hashed here and sent nowhere.

    With another version the dice are thrown again; a larger share of the same version keeps the devices it had.
    """
    drawn = hashlib.sha256(f"{device_id}:{digest}".encode()).digest()
    return int.from_bytes(drawn[:6], "big") * MILLION < share_ppm << 48

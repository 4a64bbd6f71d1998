"""The bundle: an immutable directory that its ecosystem's tools read, plus ``bundle.json``.

``digest`` is the sha256 of everything else that bundle.json says, the sha256 of each file included. So one
changed byte, in a file or in bundle.json itself, is seen; and a digest names a bundle and its history.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from everlearn.bundles.contents import check_name, check_path, list_files, refuse_hard_links, refuse_unsafe
from everlearn.bundles.durable import write_file
from everlearn.bundles.tasks import Task
from everlearn.bundles.verification import is_verified
from everlearn.errors import Corrupt, InvalidInput, NotFound, Unsupported

MANIFEST = "bundle.json"
MAX_MANIFEST_BYTES = 4 * 1024**2
MAX_RECIPE_DEPTH = 32
SCHEMA_VERSION = 1

Format = Literal["safetensors", "compressed-tensors", "onnx-genai", "onnx"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

# Formats that an engine of this machine serves as they are.
SERVABLE: frozenset[Format] = frozenset({"onnx-genai", "onnx"})


class FileEntry(BaseModel):
    """What a file of the bundle is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: Digest
    size_bytes: int = Field(ge=0)


class BundleManifest(BaseModel):
    """bundle.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    format: Format
    task: Task
    architecture: str = Field(max_length=256)
    parameters: int | None = Field(ge=0)
    parent: Digest | None = None
    recipe: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    files: dict[str, FileEntry] = Field(min_length=1)
    digest: Digest
    created_at: float

    @field_validator("name")
    @classmethod
    def _valid_name(cls, name: str) -> str:
        check_name(name, "a bundle's name")
        return name

    @field_validator("files")
    @classmethod
    def _valid_paths(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for path in files:
            check_path(path)
        return files

    @property
    def size_bytes(self) -> int:
        """Size of all files."""
        return sum(entry.size_bytes for entry in self.files.values())


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where it lies, and what it says of itself."""

    path: Path
    manifest: BundleManifest


def write_bundle(
    directory: Path,
    *,
    name: str,
    format: Format,
    task: Task,
    architecture: str,
    parameters: int | None,
    parent: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> BundleManifest:
    """Turns a filled directory into a bundle: hashes its files and writes bundle.json last.

    Raises InvalidInput naming the file or the field that a bundle may not hold.
    """
    (directory / MANIFEST).unlink(missing_ok=True)
    files = list_files(directory)
    refuse_hard_links(directory, files)
    refuse_unsafe(directory, files)
    fields: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "format": format,
        "task": task,
        "architecture": architecture,
        "parameters": parameters,
        "parent": parent,
        "recipe": _plain(recipe or {}, "recipe"),
        "metrics": _plain(metrics or {}, "metrics"),
        "files": {path: file_entry(directory / path).model_dump() for path in sorted(files)},
        "created_at": round(time.time(), 3),
    }
    fields["digest"] = _digest(fields)
    try:
        manifest = BundleManifest.model_validate(fields)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in fault["loc"])
        raise InvalidInput(f"{field} of the bundle: {fault['msg']}", param=field) from None
    content = json.dumps(fields, indent=1, ensure_ascii=False, allow_nan=False).encode()
    if len(content) > MAX_MANIFEST_BYTES:
        raise InvalidInput(
            f"{MANIFEST} would have {len(content)} bytes; at most {MAX_MANIFEST_BYTES} are allowed"
        )
    write_file(directory / MANIFEST, content)
    return manifest


def open_bundle(directory: Path, verify: bool = True) -> Bundle:
    """Reads a bundle and, with ``verify``, every byte of it, unless it was verified and has not changed since.

    Raises NotFound where there is no bundle, Corrupt naming the file that is not what was written, and
    InvalidInput naming the file that no bundle may hold.
    """
    manifest = read_manifest(directory)
    if verify and not is_verified(directory, manifest.digest):
        verify_bundle(directory, manifest)
    return Bundle(directory, manifest)


def verify_bundle(directory: Path, manifest: BundleManifest) -> None:
    """Reads every byte. Raises Corrupt or InvalidInput naming the file."""
    from everlearn.bundles.inspection import inspect_contents

    present = list_files(directory)
    present.discard(MANIFEST)
    for path in sorted(manifest.files.keys() | present):
        if path not in present:
            raise Corrupt(f"{directory / path} is missing", param=path)
        if path not in manifest.files:
            raise Corrupt(f"{directory / path} does not belong to the bundle", param=path)
        if file_entry(directory / path) != manifest.files[path]:
            raise Corrupt(
                f"{directory / path} is not the file that was written: its bytes changed", param=path
            )
    refuse_unsafe(directory, present)
    inspect_contents(directory, present)


def read_manifest(directory: Path) -> BundleManifest:
    """bundle.json, checked against its own digest. Raises NotFound, Corrupt or Unsupported."""
    path = directory / MANIFEST
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{directory} is not a bundle: it has no {MANIFEST}") from None
    if len(content) > MAX_MANIFEST_BYTES:
        raise Corrupt(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes", param=MANIFEST)
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, path: str) -> BundleManifest:
    """Parses and checks the bytes of a bundle.json; ``path`` is for messages."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"{path} is not valid JSON: {error}", param=MANIFEST) from None
    if not isinstance(fields, dict):
        raise Corrupt(f"{path} is not a JSON object", param=MANIFEST)
    version: object = fields.get("schema_version")  # pyright: ignore[reportUnknownVariableType,reportUnknownMemberType]
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise Unsupported(
            f"{path} has schema version {version}; this everlearn reads {SCHEMA_VERSION}: upgrade it"
        )
    try:
        manifest = BundleManifest.model_validate(fields)
        _plain(manifest.recipe, "recipe")
        _plain(manifest.metrics, "metrics")
        expected = _digest({key: value for key, value in fields.items() if key != "digest"})  # pyright: ignore
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in fault["loc"])
        raise Corrupt(f"{path}: {field}: {fault['msg']}", param=MANIFEST) from None
    except (InvalidInput, ValueError, RecursionError) as error:
        raise Corrupt(f"{path}: {error}", param=MANIFEST) from None
    if manifest.digest != expected:
        raise Corrupt(
            f"{path} does not match its own digest: it was changed after it was written", param=MANIFEST
        )
    return manifest


def file_entry(path: Path) -> FileEntry:
    """Size and sha256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return FileEntry(sha256=digest, size_bytes=stream.tell())


def _digest(fields: Mapping[str, Any]) -> str:
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """``value`` as plain JSON data. Raises InvalidInput naming the place of what JSON cannot hold."""
    if depth > MAX_RECIPE_DEPTH:
        raise InvalidInput(
            f"{where} is nested deeper than {MAX_RECIPE_DEPTH} levels", param=where.split(".")[0]
        )
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}", depth + 1) for key, item in value.items()}  # pyright: ignore
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{n}]", depth + 1) for n, item in enumerate(value)]  # pyright: ignore
    if isinstance(value, Path):
        return str(value)
    if (
        value is None
        or isinstance(value, str | bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return value
    raise InvalidInput(f"{where} is {value!r}, which JSON cannot hold", param=where.split(".")[0])

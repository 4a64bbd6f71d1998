"""Files elsewhere, through fsspec: S3, Google Cloud Storage, HTTP, Hugging Face data sets and the like.

They are downloaded into a cache, where each content is kept once under its sha256. An interrupted download goes on
where it was, as far as the server says that the file is still the same.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from everlearn.bundles.durable import write_file
from everlearn.errors import EverlearnError, InvalidInput, NotFound, Unavailable
from everlearn.progress import Progress, silent
from everlearn.settings import load_settings, without_password

SCHEMES = (
    "s3",
    "gs",
    "gcs",
    "az",
    "abfs",
    "abfss",
    "http",
    "https",
    "hf",
    "ftp",
    "sftp",
    "webdav",
    "hdfs",
    "memory",
)
URL = re.compile(r"[a-z][a-z0-9+.-]*://")
BY_ARROW = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
"""Read by pyarrow's own client where fsspec's package is not installed."""
CREDENTIALS = {
    "s3": "Credentials are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials",
    "gs": "Credentials are read from the file that GOOGLE_APPLICATION_CREDENTIALS names",
    "gcs": "Credentials are read from the file that GOOGLE_APPLICATION_CREDENTIALS names",
    "hf": "A data set that is not public needs HF_TOKEN; without a network, download it and name its folder",
}
VERSIONS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "created", "md5Hash", "blob_id", "lfs")
"""What tells one content of a file from another, by file system."""
TRUSTED_S = 3600.0
"""So long a file is taken from the cache whose server tells nothing but its size."""
MAX_FILES = 100_000
CHUNK_BYTES = 2**20
BLOCK_BYTES = 2**22
FREE_BYTES = 2**30
"""Of the disk, what a download leaves free."""


@dataclass(frozen=True)
class Fetched:
    """A file in the cache, and its way from what was asked for. ``found``: in a folder."""

    path: Path
    name: str
    found: bool


def is_remote(source: object) -> bool:
    return isinstance(source, str) and URL.match(source) is not None


def fetch(url: str, progress: Progress = silent) -> list[Fetched]:
    """The file of ``url``, or all below it, or all that its pattern with "*" matches, in the order of their names.

    Raises InvalidInput for a URL that is not read, NotFound, and Unavailable where the server does not answer, does
    not let us read, or the disk is full.
    """
    scheme = url.partition("://")[0]
    shown = str(without_password(url.partition("?")[0]))
    if scheme not in SCHEMES or "::" in url:
        raise InvalidInput(
            f"{shown}: is not read. Right would be a path, or {', '.join(f'{each}://' for each in SCHEMES[:-1])}",
            param="data.train",
        )
    cache = load_settings().directory("cache") / "data"
    with _answering(shown, scheme):
        files, at = _file_system(url, scheme)
        progress(f"looking for {shown}", None)
        if "*" in at:
            names, found = sorted(files.glob(at)), True
        else:
            found = files.info(at)["type"] == "directory"
            names = sorted(files.find(at)) if found else [at]
        if len(names) > MAX_FILES:
            raise InvalidInput(
                f"{shown}: has {len(names)} files. At most {MAX_FILES} are read", param="data.train"
            )
        if not names:
            raise NotFound(f"there is no file {shown}", param="data.train")
        root = at.partition("*")[0].rpartition("/")[0] if "*" in at else at
        return [
            Fetched(
                _cached(files, name, scheme, cache, progress),
                name.removeprefix(root).lstrip("/")
                if found
                else name.partition("?")[0].rstrip("/").rpartition("/")[2],
                found,
            )
            for name in names
        ]


def _file_system(url: str, scheme: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.url_to_fs(url)
    except ImportError:
        if scheme not in BY_ARROW:
            raise
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    files, at = FileSystem.from_uri(url)
    return ArrowFSWrapper(files), at


def _cached(files: Any, name: str, scheme: str, cache: Path, progress: Progress) -> Path:
    """The file's content in the cache; downloaded where it is not there, or another now."""
    info = files.info(name)
    version = {key: str(info[key]) for key in (*VERSIONS, "size") if info.get(key) is not None}
    key = hashlib.sha256(f"{scheme} {name}".encode()).hexdigest()
    for folder in ("urls", "contents"):
        (cache / folder).mkdir(parents=True, exist_ok=True)
    entry = cache / "urls" / f"{key}.json"
    with FileLock(cache / "urls" / f"{key}.lock"):
        if entry.exists():
            known = json.loads(entry.read_text())
            path = cache / "contents" / known["sha256"]
            fresh = len(version) > 1 or time.time() - known["at"] < TRUSTED_S
            if known["version"] == version and fresh and path.exists():
                return path
        sha256 = _download(files, name, info.get("size"), version, cache / "urls" / f"{key}.part", progress)
        path = cache / "contents" / sha256
        (cache / "urls" / f"{key}.part").replace(path)
        said = {"version": version, "sha256": sha256, "at": time.time()}
        write_file(entry, json.dumps(said).encode())
        return path


def _download(
    files: Any, name: str, size: int | None, version: dict[str, str], part: Path, progress: Progress
) -> str:
    """The content's sha256; goes on where a part of the same version lies."""
    of = part.with_suffix(".version")
    begun = part.stat().st_size if part.exists() and size and len(version) > 1 else 0
    if not of.exists() or json.loads(of.read_text()) != version or begun > (size or 0):
        begun = 0
    write_file(of, json.dumps(version).encode())
    digest = hashlib.sha256()
    with part.open("r+b" if begun else "wb") as out, files.open(name, "rb", **_in_blocks(files)) as stream:
        while begun > out.tell() and (block := out.read(min(CHUNK_BYTES, begun - out.tell()))):
            digest.update(block)
        if begun:
            stream.seek(begun)
        done = begun
        while block := stream.read(CHUNK_BYTES):
            if shutil.disk_usage(part.parent).free < FREE_BYTES:
                raise Unavailable(
                    f"{part.parent} has less than {FREE_BYTES >> 30} GiB left: free some, and run again"
                )
            out.write(block)
            digest.update(block)
            done += len(block)
            if size and done > size:
                break
            progress(f"downloading {name.rpartition('/')[2]}", done / size if size else None)
        out.flush()
    if size and done != size:
        raise Unavailable(f"{name} came with {done} bytes, not {size}: run it again")
    of.unlink()
    return digest.hexdigest()


def _in_blocks(files: Any) -> dict[str, Any]:
    """How fsspec's own file systems read from begin to end."""
    return (
        {}
        if type(files).__name__ == "ArrowFSWrapper"
        else {"cache_type": "readahead", "block_size": BLOCK_BYTES}
    )


@contextmanager
def _answering(shown: str, scheme: str) -> Generator[None]:
    """What a client raises, as an error about the URL."""
    try:
        yield
    except EverlearnError:
        raise
    except ImportError as error:
        raise Unavailable(f"{shown}: {scheme}:// needs another package: {error}") from None
    except Exception as error:  # noqa: BLE001 (each file system raises its own)
        cause = error.__cause__ or error.__context__ or error
        said = str(without_password(str(cause) or type(cause).__name__)).strip().splitlines()[0][:300]
        hint = f". {CREDENTIALS[scheme]}" if scheme in CREDENTIALS else ""
        if isinstance(error, FileNotFoundError) and scheme not in ("http", "https"):
            raise NotFound(f"there is no file {shown}{hint}", param="data.train") from None
        raise Unavailable(f"{shown} cannot be read: {said}{hint}") from None

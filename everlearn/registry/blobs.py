"""The store of bundles, each under its digest: a local directory by default, any fsspec URL otherwise."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import url2pathname

from everlearn.bundles.bundle import MANIFEST, BundleManifest, parse_manifest, verify_bundle
from everlearn.bundles.durable import move_directory, sync_tree
from everlearn.bundles.staging import staging_directory, sweep_staging
from everlearn.bundles.verification import forget_verified, is_verified, remember_verified
from everlearn.errors import ConfigError, Corrupt, Unavailable
from everlearn.privacy import make_private
from everlearn.settings import Settings

# An upload without its bundle.json may still be under way, on this machine or another, for this long.
UPLOAD_GRACE_S = 24 * 3600


def open_store(settings: Settings) -> LocalBlobs | RemoteBlobs:
    """The store that ``store_url`` names; a folder under ``home`` without it. Raises ConfigError."""
    url = settings.store_url
    if url is None:
        return LocalBlobs(settings.directory("store"))
    if "://" not in url:
        return LocalBlobs(Path(url).expanduser().absolute())
    if url.startswith("file://"):
        return LocalBlobs(Path(url2pathname(urlsplit(url).path)))
    return RemoteBlobs(url, settings.directory("cache"), settings.directory("tmp"))


class LocalBlobs:
    """A directory of bundles. A bundle comes in whole, by one rename, or not at all."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep_staging(root)

    @contextmanager
    def arriving(self, source: Path, manifest: BundleManifest) -> Generator[Callable[[], None]]:
        """Prepares the verified bundle in ``source``; what it yields moves it in, by one rename."""
        with ExitStack() as stack:
            near = source
            if source.stat().st_dev != self.root.stat().st_dev:
                near = stack.enter_context(staging_directory(self.root)) / "bundle"
                shutil.copytree(source, near)
            make_private(near)
            sync_tree(near)
            yield lambda: self._move_in(near, manifest)
        remember_verified(self._path(manifest.digest), manifest.digest)

    def _move_in(self, source: Path, manifest: BundleManifest) -> None:
        if not self.holds(manifest):
            self.remove(manifest.digest)  # what is there lost files
            move_directory(source, self._path(manifest.digest))

    def holds(self, manifest: BundleManifest) -> bool:
        """Whether every file is there with its size. Reading the bytes is :meth:`local`'s."""
        target = self._path(manifest.digest)
        with suppress(OSError):
            sizes = {path: (target / path).stat().st_size for path in manifest.files}
            return (target / MANIFEST).is_file() and sizes == _sizes(manifest)
        return False

    def local(self, manifest: BundleManifest) -> Path:
        """The verified directory. Raises Corrupt naming the file."""
        target = self._path(manifest.digest)
        if not target.is_dir():
            raise Corrupt(f"{target} is missing: the store lost a bundle", param=manifest.digest)
        _verify(target, manifest)
        return target

    def reread(self, manifest: BundleManifest) -> None:
        """Reads every byte again. Raises Corrupt naming the file."""
        forget_verified(self._path(manifest.digest))
        self.local(manifest)

    def digests(self) -> Iterator[str]:
        """What could be collected."""
        return (path.name for path in self.root.iterdir() if _is_digest(path.name))

    def remove(self, digest: str) -> None:
        """Takes a bundle away: out of sight by one rename, then off the disk."""
        forget_verified(self._path(digest))
        with staging_directory(self.root) as trash, suppress(FileNotFoundError):
            move_directory(self._path(digest), trash / digest)

    def _path(self, digest: str) -> Path:
        return self.root / digest


class RemoteBlobs:
    """Bundles behind an fsspec URL; bundle.json is uploaded last and marks a complete one.

    What is served from here is first downloaded to ``cache``, verified, and kept there.
    """

    def __init__(self, url: str, cache: Path, tmp: Path) -> None:
        from fsspec.core import url_to_fs  # pyright: ignore[reportUnknownVariableType,reportMissingTypeStubs]

        try:
            found = cast("tuple[Any, str]", url_to_fs(url))
        except (ImportError, ValueError) as error:
            raise ConfigError(f"store_url cannot be used: {error}", param="store_url") from None
        self._fs, root = found
        self._root = root.rstrip("/")
        self._tmp = tmp
        self.cache = cache

    @contextmanager
    def arriving(self, source: Path, manifest: BundleManifest) -> Generator[Callable[[], None]]:
        """Uploads the verified bundle in ``source``; what it yields makes sure that it is still there."""
        self._upload(source, manifest)
        yield lambda: self._upload(source, manifest)

    def _upload(self, source: Path, manifest: BundleManifest) -> None:
        if self.holds(manifest):
            return
        target = self._path(manifest.digest)
        with _reachable():
            for path in (*manifest.files, MANIFEST):
                self._fs.makedirs(f"{target}/{path}".rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(source / path), f"{target}/{path}")

    def holds(self, manifest: BundleManifest) -> bool:
        """Whether every file is there with its size."""
        with _reachable():
            self._fs.invalidate_cache()
            target = self._path(manifest.digest)
            if not self._fs.exists(f"{target}/{MANIFEST}"):
                return False
            found = cast("dict[str, dict[str, Any]]", self._fs.find(target, detail=True))
        sizes = {name.removeprefix(f"{target}/"): entry["size"] for name, entry in found.items()}
        return all(sizes.get(path) == size for path, size in _sizes(manifest).items())

    def local(self, manifest: BundleManifest) -> Path:
        """A verified copy on this machine. Raises Corrupt naming the file, Unavailable."""
        target = self.cache / manifest.digest
        if target.is_dir():
            _verify(target, manifest)
            return target
        with staging_directory(self._tmp) as staging:
            self._download(manifest, staging)
            _verify(staging, manifest, remember=False)
            sync_tree(staging)
            _move_unless_there(staging, target)
        remember_verified(target, manifest.digest)
        return target

    def reread(self, manifest: BundleManifest) -> None:
        """Downloads and reads every byte again. Raises Corrupt naming the file."""
        self._drop_cached(manifest.digest)
        self.local(manifest)

    def _download(self, manifest: BundleManifest, into: Path) -> None:
        source = self._path(manifest.digest)
        for path in (*manifest.files, MANIFEST):
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            try:
                with _reachable():
                    self._fs.get_file(f"{source}/{path}", str(into / path))
            except FileNotFoundError:
                raise Corrupt(f"{source}/{path} is missing: the store lost it", param=path) from None

    def digests(self) -> Iterator[str]:
        """What could be collected: bundles that are complete, and uploads that nobody finishes any more."""
        with _reachable():
            self._fs.invalidate_cache()
            folders: list[str] = self._fs.ls(self._root, detail=False) if self._fs.exists(self._root) else []
            for folder in folders:
                name = folder.rstrip("/").rpartition("/")[2]
                if _is_digest(name) and (self._fs.exists(f"{folder}/{MANIFEST}") or self._abandoned(folder)):
                    yield name

    def _abandoned(self, folder: str) -> bool:
        times = [self._fs.modified(file).timestamp() for file in self._fs.find(folder)]
        return bool(times) and max(times) < time.time() - UPLOAD_GRACE_S

    def remove(self, digest: str) -> None:
        """Takes a bundle away, bundle.json first."""
        with _reachable():
            target = self._path(digest)
            with suppress(FileNotFoundError):
                self._fs.rm_file(f"{target}/{MANIFEST}")
            with suppress(FileNotFoundError):
                self._fs.rm(target, recursive=True)
        self._drop_cached(digest)

    def _drop_cached(self, digest: str) -> None:
        forget_verified(self.cache / digest)
        shutil.rmtree(self.cache / digest, ignore_errors=True)

    def _path(self, digest: str) -> str:
        return f"{self._root}/{digest}"


@contextmanager
def _reachable() -> Generator[None]:
    """Says what failed when a remote store does not answer; a missing file is the caller's to explain."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unavailable(f"the store does not answer: {error}", param="store_url") from error


def _move_unless_there(source: Path, target: Path) -> None:
    """Of processes that bring the same bundle at once, one moves it in."""
    try:
        move_directory(source, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _verify(directory: Path, manifest: BundleManifest, remember: bool = True) -> None:
    """Against the manifest that the database holds, so that an exchanged bundle.json is seen too."""
    if is_verified(directory, manifest.digest):
        return
    try:
        found = parse_manifest((directory / MANIFEST).read_bytes(), str(directory / MANIFEST))
    except FileNotFoundError:
        raise Corrupt(f"{directory / MANIFEST} is missing", param=MANIFEST) from None
    if found.digest != manifest.digest:
        raise Corrupt(f"{directory / MANIFEST} describes another bundle", param=MANIFEST)
    verify_bundle(directory, manifest)
    if remember:
        remember_verified(directory, manifest.digest)


def _sizes(manifest: BundleManifest) -> dict[str, int]:
    return {path: entry.size_bytes for path, entry in manifest.files.items()}


def _is_digest(name: str) -> bool:
    return len(name) == 64 and set(name) <= set("0123456789abcdef")

"""Models from a Hugging Face hub: the resolved commit, and only files that are data."""

# pyright: basic
# huggingface_hub and tqdm tell strict rules too little of their types.

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from everlearn.errors import Corrupt, InvalidInput, NotFound, Unavailable
from everlearn.progress import Progress
from everlearn.settings import Settings

ANSWER_TIMEOUT_S = 3.0
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Listed:
    """A file of a repository; what the hub does not tell is None."""

    size_bytes: int | None
    sha256: str | None


@dataclass(frozen=True)
class Commit:
    """One state of a repository, for good."""

    repo: str
    sha: str
    files: dict[str, Listed]


def resolve_commit(repo: str, revision: str | None) -> Commit:
    """The commit a revision names now. Raises InvalidInput, NotFound, or Unavailable within seconds.

    A revision that is a commit itself is answered by that one, or it is Corrupt.
    """
    from huggingface_hub import HfApi

    with _answering(repo, revision, f"the hub does not answer for {repo}"):
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=ANSWER_TIMEOUT_S)
        sha = str(info.sha)
        files = {str(file.rfilename): _listed(file) for file in info.siblings or ()}
    if not COMMIT.fullmatch(sha):
        raise Unavailable(f"the hub names no commit for {repo}")
    if revision and COMMIT.fullmatch(revision) and revision != sha:
        raise Corrupt(f"the hub answered {repo} at {revision} with the commit {sha}: it is refused")
    return Commit(repo, sha, files)


def _listed(file: Any) -> Listed:
    size, sha256 = file.size, file.lfs and file.lfs.sha256
    return Listed(size if isinstance(size, int) else None, sha256 if isinstance(sha256, str) else None)


def download_commit(
    settings: Settings, commit: Commit, patterns: tuple[str, ...], progress: Progress
) -> Path:
    """A folder with the files of ``commit`` that match; an interrupted download goes on where it was.

    Raises Unavailable where the connection breaks, and Corrupt where a file is not the one that was listed.
    """
    from huggingface_hub import snapshot_download

    folder = settings.directory("cache") / "hub" / f"{commit.repo.replace('/', '--')}--{commit.sha}"
    broken = f"downloading {commit.repo} broke off; run it again to go on"
    with _answering(commit.repo, commit.sha, broken):
        snapshot_download(
            commit.repo,
            revision=commit.sha,
            local_dir=folder,
            allow_patterns=list(patterns),
            tqdm_class=_bars(commit.repo, progress),
        )
    for name, listed in commit.files.items():
        if any(fnmatch(name, pattern) for pattern in patterns):
            _check(folder / name, name, listed, broken)
    return folder


def _check(file: Path, name: str, listed: Listed, broken: str) -> None:
    """The client takes what lies there already where the hub is gone meanwhile, and compares no hashes."""
    if not file.is_file():
        raise Unavailable(f"{broken} ({name} is missing)")
    found = file.stat().st_size
    if listed.size_bytes not in (None, found):
        file.unlink()
        raise Corrupt(f"{name} came with {found} bytes, not {listed.size_bytes}: run it again", param=name)
    if listed.sha256 is not None:
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if sha256 != listed.sha256:
            file.unlink()
            raise Corrupt(f"{name} came with sha256 {sha256}, not {listed.sha256}: run it again", param=name)


@contextmanager
def _answering(repo: str, revision: str | None, broken: str) -> Generator[None]:
    """What the hub's client raises, in the words of ours."""
    from huggingface_hub.errors import (
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except HFValidationError as error:
        raise InvalidInput(f"{repo!r} is not a hub id such as hf:ORG/NAME: {error}") from None
    except RevisionNotFoundError:
        raise NotFound(f"{repo} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise NotFound(f"the hub has no model {repo!r}, or it needs a token (HF_TOKEN)") from None
    except OfflineModeIsEnabled:
        raise Unavailable("HF_HUB_OFFLINE is set: the hub is not asked") from None
    except Exception as error:  # noqa: BLE001 (its HTTP client's errors, and any at an answer that is no hub's)
        raise Unavailable(f"{broken} ({type(error).__name__}: {error})"[:500]) from None


def _bars(repo: str, progress: Progress) -> type[Any]:
    """tqdm's shape over our own progress: hub's bars count bytes, and are told apart by their unit."""
    from tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **(kwargs | {"gui": False, "file": _NOWHERE, "disable": False}))

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.unit == "B" and self.total:
                progress(f"downloading {repo}", min(1.0, self.n / self.total))
            return shown

        def display(self, *args: Any, **kwargs: Any) -> None:
            pass

    return Bar


class _Nowhere:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


_NOWHERE = _Nowhere()

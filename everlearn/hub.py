"""Models from a Hugging Face hub: the resolved commit, and only files that are data."""

# pyright: basic
# huggingface_hub and tqdm tell strict rules too little of their types.

from __future__ import annotations

from pathlib import Path
from typing import Any

from everlearn.errors import InvalidInput, NotFound, Unavailable
from everlearn.progress import Progress
from everlearn.settings import Settings

ANSWER_TIMEOUT_S = 3.0


def resolve_commit(repo: str, revision: str | None) -> str:
    """The commit a revision names now. Raises InvalidInput, NotFound, or Unavailable within seconds."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(repo, revision=revision, timeout=ANSWER_TIMEOUT_S)
    except HFValidationError as error:
        raise InvalidInput(f"{repo!r} is not a hub id such as hf:ORG/NAME: {error}") from None
    except RevisionNotFoundError:
        raise NotFound(f"{repo} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise NotFound(f"the hub has no model {repo!r}, or it needs a token (HF_TOKEN)") from None
    except OfflineModeIsEnabled:
        raise Unavailable("HF_HUB_OFFLINE is set: the hub is not asked") from None
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise Unavailable(f"the hub does not answer: {type(error).__name__}") from None
    if info.sha is None:
        raise Unavailable(f"the hub names no commit for {repo}")
    return info.sha


def download_commit(
    settings: Settings, repo: str, commit: str, patterns: tuple[str, ...], progress: Progress
) -> Path:
    """A folder with the files of ``commit`` that match; an interrupted download goes on where it was.

    Raises Unavailable where the connection breaks.
    """
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    folder = settings.directory("cache") / "hub" / f"{repo.replace('/', '--')}--{commit}"
    try:
        snapshot_download(
            repo,
            revision=commit,
            local_dir=folder,
            allow_patterns=list(patterns),
            tqdm_class=_bars(repo, progress),
        )
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise Unavailable(f"downloading {repo} broke off ({error}); run it again to go on") from None
    return folder


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

"""Find the files to read: those that are named, and all readable ones of folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from everlearn.errors import InvalidInput, NotFound
from everlearn.progress import Progress, silent
from train.data.options import DataOptions
from train.data.reading.read import SUFFIXES, layout_named
from train.data.reading.remote import fetch

Skipped = dict[str, list[str]]
"""Names of what is not read, by the reason."""


@dataclass(frozen=True)
class Source:
    """A file, and the name it is known by where it is kept under another. Those ``held`` are never trained on.

    Those ``found`` in a folder are skipped where they are empty, or where their first record has no known form; a
    file that is named must hold examples. ``component``: of the mixture that it belongs to.
    """

    path: Path
    name: str
    held: bool = False
    found: bool = False
    component: str | None = None


Given = Path | str | Source
"""A file or folder; a string is a URL, see ``train.data.reading.remote``."""
Sources = Sequence[Given] | Mapping[str, Sequence[Given]]
"""What to learn from; a mapping has the components of a mixture."""


def expand(
    sources: Sources, held: Sequence[Path | str] = (), progress: Progress = silent
) -> tuple[list[Source], Skipped]:
    """The files of ``sources`` and ``held``, and what of their folders is skipped. Files elsewhere are downloaded.

    Raises NotFound for a missing file, InvalidInput for a folder without one that can be read, or where there is
    nothing to train on, and Unavailable for a URL that does not answer.
    """
    files: list[Source] = []
    skipped: Skipped = {}
    if isinstance(sources, Mapping):
        for component, those in sources.items():
            found = (file for source in those for file in _expanded(source, False, skipped, progress))
            files += (replace(file, component=component) for file in found)
    else:
        files += (file for source in sources for file in _expanded(source, False, skipped, progress))
    files += (file for source in held for file in _expanded(source, True, skipped, progress))
    for file in files:
        if not os.access(file.path, os.R_OK):
            raise InvalidInput(f"{file.path} may not be read by this user", param="training_file")
    if all(file.held for file in files):
        raise InvalidInput("there is no file to train on", param="training_file")
    return files, skipped


def _expanded(source: Given, held: bool, skipped: Skipped, progress: Progress) -> list[Source]:
    if isinstance(source, str):
        return _remote(source, held, skipped, progress)
    given = source if isinstance(source, Source) else Source(source, source.name, held)
    if given.path.is_dir():
        return _folder(given, skipped)
    if not given.path.exists():
        raise NotFound(f"there is no file {given.path}", param="training_file")
    return [given]


def list_sources(
    sources: Sources, held: Sequence[Path | str] = (), progress: Progress = silent
) -> list[Source]:
    """Every file that is read, in the order of reading; see :func:`expand`."""
    return expand(sources, held, progress)[0]


def _remote(url: str, held: bool, skipped: Skipped, progress: Progress) -> list[Source]:
    found: list[Source] = []
    for file in fetch(url, progress):
        if file.found and layout_named(file.name) is None:
            skipped.setdefault("of unknown kind", []).append(file.name)
        else:
            found.append(Source(file.path, file.name, held, file.found))
    if not found:
        raise InvalidInput(
            f"{url} has no files to read. Right would be {', '.join(SUFFIXES)}, or one of them with .gz",
            param="training_file",
        )
    return found


def given_sources(options: DataOptions) -> dict[str, list[Source]]:
    """The user's files beside the data, by the recipe's key; of a folder, those in it. Raises NotFound, InvalidInput."""
    return {
        key: list_sources([Source(path, path.name) for path in paths])
        for key, paths in options.given_files().items()
        if paths
    }


def _folder(folder: Source, skipped: Skipped) -> list[Source]:
    """Its files in order, named by their way from it; hidden ones, links that lead out of it, empty ones and those of
    kinds that are not known are skipped."""
    found: list[Source] = []
    here: Skipped = {}
    for path, name, reason in _walk(folder.path):
        if reason:
            here.setdefault(reason, []).append(name)
        else:
            found.append(Source(path, name, folder.held, found=True))
    for reason, names in here.items():
        skipped.setdefault(reason, []).extend(names)
    if not found:
        also = "; ".join(f"{len(names)} {reason}" for reason, names in here.items())
        raise InvalidInput(
            f"{folder.path} has no files to read{f' ({also})' if also else ''}. "
            f"Right would be {', '.join(SUFFIXES)}, or one of them with .gz",
            param="training_file",
        )
    return found


def _walk(root: Path) -> Iterator[tuple[Path, str, str | None]]:
    """Each file, its name, and why it is not read; folders that are not entered count as one."""

    def fail(error: OSError) -> None:
        raise InvalidInput(f"{error.filename} cannot be read: {error.strerror}", param="training_file")

    inside = root.resolve()
    for at, folders, names in os.walk(root, onerror=fail):
        folders.sort()
        entered: list[str] = []
        for folder in folders:
            path = Path(at) / folder
            reason = "hidden" if folder.startswith(".") else "links" if path.is_symlink() else None
            if reason:
                yield path, f"{_name(path, root)}/", reason
            else:
                entered.append(folder)
        folders[:] = entered
        for name in sorted(names):
            path = Path(at) / name
            yield path, _name(path, root), _why_skipped(path, inside)


def _why_skipped(path: Path, inside: Path) -> str | None:
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink() and not path.resolve().is_relative_to(inside):
        return "links"
    if not path.is_file():
        return "no files"
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in SUFFIXES:
        return "of unknown kind"
    return None if path.stat().st_size else "empty"


def _name(path: Path, root: Path) -> str:
    """The way from the folder, with "/", in characters that can be written down."""
    return path.relative_to(root).as_posix().encode(errors="replace").decode()

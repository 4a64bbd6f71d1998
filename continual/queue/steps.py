"""A job's folder: steps whose results appear whole, and are not made again.

A step is made in a folder beside, hashed, flushed, and renamed into place. Killed anywhere, a job that starts
again takes every finished step as it is and goes on with the first that is not.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from everlearn.bundles.bundle import file_entry
from everlearn.bundles.durable import move_directory, sync_tree, write_file

log = structlog.stdlib.get_logger("continual.steps")

DONE = "done.json"


@dataclass(frozen=True)
class Step:
    """``result`` is plain JSON; ``directory`` holds the files."""

    directory: Path
    result: dict[str, Any]


class Steps:
    """The steps of one job, by name, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def do(self, name: str, make: Callable[[Path], Mapping[str, Any]]) -> Step:
        """What ``make`` made of an empty folder, now or in an earlier life of this job."""
        if step := self.find(name):
            return step
        target, partial = self.folder / name, self.folder / f".{name}"
        shutil.rmtree(target, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial.mkdir()
        result = dict(make(partial))
        files = {str(path): file_entry(partial / path).model_dump() for path in _files(partial)}
        done = {"result": result, "files": files}
        write_file(partial / DONE, json.dumps(done).encode())
        sync_tree(partial)
        move_directory(partial, target)
        return Step(target, result)

    def find(self, name: str) -> Step | None:
        """The finished step whose every byte is as it was written, or None."""
        directory = self.folder / name
        try:
            done = json.loads((directory / DONE).read_bytes())
        except (OSError, ValueError):
            return None
        found = {str(path) for path in _files(directory)} - {DONE}
        whole = found == done["files"].keys() and all(
            file_entry(directory / path).model_dump() == entry for path, entry in done["files"].items()
        )
        if not whole:
            log.warning("a finished step lost its files and is made again", step=name)
            return None
        return Step(directory, done["result"])

    def amend(self, step: Step, result: Mapping[str, Any]) -> None:
        """Writes another result of a finished step down; its files stay as they are."""
        done = json.loads((step.directory / DONE).read_bytes())
        write_file(step.directory / DONE, json.dumps({**done, "result": dict(result)}).encode())

    def clear(self) -> None:
        """Forgets everything: the job starts over."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _files(directory: Path) -> list[Path]:
    return [path.relative_to(directory) for path in sorted(directory.rglob("*")) if path.is_file()]

"""Check an uploaded file when it comes, not when its job runs. Reads it in a child, within limits.

The gateway imports this: nothing heavy here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everlearn.errors import InvalidInput
from everlearn.processes.child import Limits, answer, run_child
from everlearn.progress import Progress, silent
from everlearn.settings import ContinualSettings

READING_S = 5.0
"""A file that takes longer is taken as far as it was read; the job reads the rest."""
WALL_S = 60.0
"""Of the child in all: one record that takes so long is no record."""


def check_examples(path: Path, name: str, settings: ContinualSettings) -> None:
    """Reads the examples of ``path``, whose name says what it holds, or its first bytes where it has no suffix.

    Raises InvalidInput naming the line, and what would be right.
    """
    request = {"path": str(path), "name": name, "max_unpacked_bytes": settings.max_unpacked_bytes}
    limits = Limits(name, memory_bytes=settings.data_memory_bytes, wall_s=WALL_S, param="file")
    try:
        run_child("continual.queue.check_file", request, silent, limits)
    except InvalidInput as error:
        raise InvalidInput(error.message, param="file") from None


def work(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The child: reads until :data:`READING_S` are over."""
    from train.data.reading.read import Limits as FileLimits
    from train.data.reading.read import read_examples

    limits = FileLimits(max_unpacked_bytes=request["max_unpacked_bytes"])
    until = time.monotonic() + READING_S
    examples = 0
    for _ in read_examples(Path(request["path"]), limits=limits, name=request["name"]):
        examples += 1
        if time.monotonic() > until:
            break
    return {"examples": examples}


if __name__ == "__main__":
    answer(work)

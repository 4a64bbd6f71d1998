"""Reading and cleaning in several processes, a file or a part of one at a time each: the work of
``train.data.collecting.collect``."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from everlearn.processes.child import answer_each
from everlearn.processes.worker import Worker
from everlearn.progress import Progress
from train.data.cleaning.cleaner import Cleaner
from train.data.collecting.collect import collect
from train.data.options import DataOptions
from train.data.reading.part import Part
from train.data.reading.sources import Source


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Asked:
    """A file to collect: its sha256, the digest of its pictures, and the parts that it is read in; none where whole."""

    source: Source
    sha256: str
    images: str | None = None
    parts: Sequence[Part] = ()

    @property
    def pieces(self) -> list[tuple[Part | None, int]]:
        """What is read by itself, and its bytes."""
        if not self.parts:
            return [(None, self.source.path.stat().st_size)]
        return [(part, part.end - part.begin) for part in self.parts]


def collect_each(
    files: Sequence[Asked],
    options: DataOptions,
    work: Path,
    max_unpacked_bytes: int | None,
    processes: int,
    progress: Progress,
) -> None:
    """Collects every file, or each of its parts, into ``work``, the largest first, so that no process is left alone with one
    at the end.

    Raises the error of the first broken file in the order of reading.
    """
    pieces = [(file, part, size) for file in files for part, size in file.pieces]
    total = max(1, sum(size for *_, size in pieces))
    held = [_said(file.source) for file in files if file.source.held]
    told, done = threading.Lock(), [0]
    workers = threading.local()
    started: list[Worker] = []

    def one(number: int) -> None:
        file, part, size = pieces[number]
        if not hasattr(workers, "own"):
            workers.own = Worker("train.data.collecting.collect_child")
            started.append(workers.own)
        workers.own.ask(
            {
                "source": _said(file.source),
                "sha256": file.sha256,
                "images": file.images,
                "part": part and astuple(part),
                "options": options.model_dump(mode="json"),
                "held": held,
                "work": str(work),
                "max_unpacked_bytes": max_unpacked_bytes,
            }
        )
        with told:
            done[0] += size
            progress(f"read {done[0] / 1e6:.0f} of {total / 1e6:.0f} MB", 0.6 * done[0] / total)

    pool = ThreadPoolExecutor(processes)
    try:
        largest_first = sorted(range(len(pieces)), key=lambda number: (-pieces[number][2], number))
        asked = {number: pool.submit(one, number) for number in largest_first}
        for number in range(len(pieces)):
            asked[number].result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in started:
            worker.close()


def _said(file: Source) -> dict[str, Any]:
    return {"path": str(file.path), "name": file.name, "held": file.held, "found": file.found}


def _source(said: Mapping[str, Any]) -> Source:
    return Source(Path(said["path"]), said["name"], said["held"], said["found"])


@lru_cache(maxsize=1)
def _cleaner(options: str, held: str) -> Cleaner:
    return Cleaner(DataOptions.model_validate_json(options), [_source(each) for each in json.loads(held)])


def work(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    collect(
        _source(request["source"]),
        request["sha256"],
        DataOptions.model_validate(request["options"]),
        Path(request["work"]),
        _cleaner(json.dumps(request["options"]), json.dumps(request["held"])),
        request["max_unpacked_bytes"],
        request["images"],
        Part(*request["part"]) if request["part"] else None,
    )
    return {}


if __name__ == "__main__":
    answer_each(work)

"""Reading and cleaning files in several processes, a file at a time each: the work of ``train.data.collect``."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from everlearn.processes.child import answer_each
from everlearn.processes.worker import Worker
from everlearn.progress import Progress
from train.data.cleaning.cleaner import Cleaner
from train.data.collect import collect
from train.data.options import DataOptions
from train.data.reading.sources import Source


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def collect_each(
    files: Sequence[Source],
    sha256s: Sequence[str],
    images: Sequence[str | None],
    options: DataOptions,
    work: Path,
    max_unpacked_bytes: int | None,
    processes: int,
    progress: Progress,
) -> None:
    """Collects every file into ``work``, the largest first, so that no process is left alone with one at the end.

    Raises the error of the first broken file in the order of reading.
    """
    sizes = [file.path.stat().st_size for file in files]
    told, done = threading.Lock(), [0]
    workers = threading.local()
    started: list[Worker] = []

    def one(number: int) -> None:
        if not hasattr(workers, "own"):
            workers.own = Worker("train.data.collect_child")
            started.append(workers.own)
        workers.own.ask(
            {
                "source": _said(files[number]),
                "sha256": sha256s[number],
                "images": images[number],
                "options": options.model_dump(mode="json"),
                "held": [_said(file) for file in files if file.held],
                "work": str(work),
                "max_unpacked_bytes": max_unpacked_bytes,
            }
        )
        with told:
            done[0] += sizes[number]
            progress(
                f"read {done[0] / 1e6:.0f} of {sum(sizes) / 1e6:.0f} MB", 0.6 * done[0] / max(1, sum(sizes))
            )

    pool = ThreadPoolExecutor(processes)
    try:
        largest_first = sorted(range(len(files)), key=lambda number: (-sizes[number], number))
        asked = {number: pool.submit(one, number) for number in largest_first}
        for number in range(len(files)):
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
    )
    return {}


if __name__ == "__main__":
    answer_each(work)

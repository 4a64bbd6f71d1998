"""Refuse a file with fewer documents than a job needs, and say whether it is one document alone.

The first is told when the job is made, and not in the queue.

The gateway imports this: nothing heavy here, and it looks into small files alone.
"""

from __future__ import annotations

import gzip
from itertools import islice
from pathlib import Path

from sqlalchemy import Engine, select

from continual.recipe import MIN_DOCUMENTS
from everlearn.errors import InvalidInput
from everlearn.registry.database import read
from everlearn.registry.tables import FileRow
from train.data.reading.read import SEPARATOR, Limits, layout_named, read_examples

LOOKED_INTO_BYTES = 2**20
MAX_UNPACKED_BYTES = 2**24


def why_too_few(
    database: Engine, folder: Path, training_file: str, validation_file: str | None
) -> InvalidInput | None:
    """What is wrong where one of a job's files in ``folder`` holds too few documents.

    Of files that are there: whether they are is found out where the job is written.
    """
    has_validation = validation_file is not None
    for file_id, held in ((training_file, False), (validation_file, True)):
        with read(database) as connection:
            name = connection.scalar(select(FileRow.filename).where(FileRow.id == file_id))
        if file_id is None or name is None:
            continue
        if few := _why_too_few(folder / file_id, name, held=held, has_validation=has_validation):
            return few
    return None


def _why_too_few(path: Path, name: str, *, held: bool, has_validation: bool) -> InvalidInput | None:
    """What is wrong where a file holds too few documents: ``held``, to measure on; else, to learn from too.

    A file of which that is not known quickly passes, and a broken one: the job tells.
    """
    least = MIN_DOCUMENTS if held else 1 if has_validation else 2 * MIN_DOCUMENTS
    found = _count(path, name, least)
    if found is None or found >= least:
        return None
    if held:
        need = f"and measuring what is learned takes at least {least}"
    else:
        need = (
            f"and a job takes at least {least}: {MIN_DOCUMENTS} are held out to measure on, and as many are needed to "
            "learn from; give more, or a validation_file to measure on"
        )
    apart = (
        f". A line that holds nothing but {SEPARATOR} parts the documents of a text" if _is_text(name) else ""
    )
    documents = "document" if found == 1 else "documents"
    return InvalidInput(
        f"{name} holds {found} {documents}, {need}{apart}",
        param="validation_file" if held else "training_file",
    )


def is_one_text(path: Path, name: str) -> bool:
    """Whether a file is a text in which no line parts documents, so that they are cut out of one."""
    if not _is_text(name):
        return False
    with gzip.open(path) if name.lower().endswith(".gz") else path.open("rb") as stream:
        return not any(
            line.strip() == SEPARATOR.encode() for line in iter(lambda: stream.readline(2**16), b"")
        )


def _count(path: Path, name: str, enough: int) -> int | None:
    """How many documents there are, at most ``enough``; None where that is not known quickly."""
    try:
        if path.stat().st_size > LOOKED_INTO_BYTES or name.lower().endswith(".parquet"):
            return None
        limits = Limits(max_unpacked_bytes=MAX_UNPACKED_BYTES)
        return sum(1 for _ in islice(read_examples(path, limits=limits, name=name), enough))
    except (InvalidInput, OSError):
        return None


def _is_text(name: str) -> bool:
    return layout_named(name) == "text"

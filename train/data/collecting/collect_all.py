"""The documents of all files, by as many processes as asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from everlearn.bundles.bundle import FileEntry
from everlearn.progress import Progress
from train.data.cleaning.cleaner import Cleaner
from train.data.collecting.collect import Collection, collect, collection_name, limits_of
from train.data.collecting.collect_child import Asked, collect_each, cores
from train.data.collecting.merged import collect_parts
from train.data.collecting.shards import parts_of
from train.data.options import DataOptions
from train.data.reading.part import Part
from train.data.reading.sources import Source

SHARED_FROM_BYTES = 2**26
"""Less is read sooner by one process than others start."""


def process_count(asked: int | None, entries: Sequence[FileEntry]) -> int:
    """So many as asked; by default one per core where there is much to read."""
    return asked or (cores() if sum(entry.size_bytes for entry in entries) >= SHARED_FROM_BYTES else 1)


def collect_all(
    files: Sequence[Source],
    entries: Sequence[FileEntry],
    images: Sequence[str | None],
    options: DataOptions,
    work: Path,
    cleaner: Cleaner,
    progress: Progress,
    max_unpacked_bytes: int | None,
    processes: int,
) -> list[Collection]:
    """Each file's kept documents on disk; those files, and parts of large ones, that an earlier run finished are taken as
    they are."""
    asked = [
        Asked(
            file, entry.sha256, shown, _parts(file, entry, shown, options, work, cleaner, max_unpacked_bytes)
        )
        for file, entry, shown in zip(files, entries, images, strict=True)
    ]
    total = max(1, sum(entry.size_bytes for entry in entries))
    count = min(processes, sum(len(each.pieces) for each in asked))
    if count > 1:
        collect_each(asked, options, work, max_unpacked_bytes, count, progress)
    collected: list[Collection] = []
    read = 0
    for each, entry in zip(asked, entries, strict=True):
        name, before = each.source.name, read

        def told(done: int, name: str = name, before: int = before) -> None:
            progress(f"reading {name}", 0.6 * (before + done) / total)

        told(0)
        if each.parts:
            collect_parts(each.source, each.sha256, options, work, cleaner, each.parts, told)
        collected.append(
            collect(each.source, each.sha256, options, work, cleaner, max_unpacked_bytes, each.images)
        )
        read += entry.size_bytes
    return collected


def _parts(
    file: Source,
    entry: FileEntry,
    images: str | None,
    options: DataOptions,
    work: Path,
    cleaner: Cleaner,
    max_unpacked_bytes: int | None,
) -> Sequence[Part]:
    """None where the whole file is there already."""
    if (work / collection_name(file, entry.sha256, options, cleaner, images)).exists():
        return ()
    return parts_of(file, options, limits_of(file, options, max_unpacked_bytes))

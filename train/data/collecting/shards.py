"""Where a large file is cut, so that its parts read one by one give the documents of the whole.

JSON lines are cut at any line, texts where a document begins. Other files are read by one process: rows of CSV may hold line
breaks, and what is compressed has no middle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import IO

from everlearn.errors import InvalidInput
from train.data.options import DataOptions
from train.data.reading.lines import BOM, Limits, Reader, documents, lines
from train.data.reading.part import Part
from train.data.reading.read import RawExample, layout_named, read_examples
from train.data.reading.sources import Source
from train.data.reading.unpacked import Unpacked

SHARD_BYTES = 2**24
"""About ten seconds of cleaning."""
BLOCK_BYTES = 2**20
HEAD_BYTES = 4096


def parts_of(source: Source, options: DataOptions, limits: Limits) -> list[Part]:
    """The parts of a file, in order; none of one that is read whole. They depend on nothing but its bytes."""
    layout = layout_named(source.name)
    size, most = source.path.stat().st_size, limits.max_unpacked_bytes
    if layout not in ("jsonl", "text") or source.name.lower().endswith(".gz") or size < 2 * SHARD_BYTES:
        return []
    if options.image_side or (most is not None and size > most) or (layout == "text" and options.labelled):
        return []
    with source.path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
        if head.startswith(b"\x1f\x8b") or head.removeprefix(BOM).lstrip()[:1] in (b"", b"["):
            return []
        stream.seek(0)
        begins = _lines(stream) if layout == "jsonl" else _documents(source, stream, limits)
        try:
            next(_examples(source, options, limits), None)
            borders = [*begins]
        except InvalidInput:
            return []  # no examples, or what is wrong is told where it is read
    ends = [*(begin for begin, _ in borders), size]
    whole = [(0, 1), *borders]
    return [Part(begin, end, line) for (begin, line), end in zip(whole, ends, strict=True)]


def _examples(source: Source, options: DataOptions, limits: Limits) -> Iterator[RawExample]:
    return read_examples(
        source.path, kind=options.kind, limits=limits, name=source.name, translation=options.translation
    )


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, int]]:
    """Where a line begins, and its number, about every SHARD_BYTES."""
    offset, number, wanted = 0, 1, SHARD_BYTES
    while block := stream.read(BLOCK_BYTES):
        at = 0
        while (end := block.find(b"\n", max(at, wanted - 1 - offset)) + 1) > 0:
            number += block.count(b"\n", at, end)
            at = end
            yield offset + at, number
            wanted = offset + at + SHARD_BYTES
        number += block.count(b"\n", at)
        offset += len(block)


def _documents(source: Source, stream: IO[bytes], limits: Limits) -> Iterator[tuple[int, int]]:
    """Where a document begins, and the number of its first line, about every SHARD_BYTES."""
    begins: deque[tuple[int, int]] = deque()
    reader = Reader(stream, source.name, limits, Unpacked(source.path, limits.max_unpacked_bytes))

    def numbered() -> Iterator[tuple[int, str]]:
        for number, line in lines(reader, ""):
            begins.append((number, reader.line_begin))
            yield number, line

    border = 0
    for document in documents(numbered(), source.name, limits):
        first = int(document.source.rpartition(":")[2])
        while begins[0][0] < first:
            begins.popleft()
        number, begin = begins[0]
        if begin - border >= SHARD_BYTES:
            border = begin
            yield begin, number

"""A file as its difference from a former one: each tensor XOR the former tensor of its name, then zstd.

A rounded weight that a lesson left alone is a zero byte after XOR, and zeros compress to nothing. XOR is its own
inverse, so one difference leads both ways wherever the tensors lie alike. Both sides hold a segment in memory at a time.

Layout: ``EVDELTA1``, the header's length (uint32, little-endian), the header (JSON, zstd), one zstd frame for each
segment. Header: ``{"bytes": size of the result, "segments": [[bytes, offset in the base or -1, the frame's bytes], …]}``.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import numpy as np
import zstandard

from deploy.updates.release import Tensor
from everlearn.errors import Corrupt

MAGIC = b"EVDELTA1"
SEGMENT_BYTES = 4 << 20
MAX_HEADER_BYTES = 16 << 20
LEVEL = 19
"""Of differences: a sixth fewer bytes than at 15, for three times the publisher's time."""
ALONE_LEVEL = 3
"""Of files by themselves: rounded weights do not get smaller at higher ones."""

Segment = tuple[int, int]
"""Bytes of the result, and where in the base what they are XORed with begins; -1: with nothing."""


def write_delta(
    out: BinaryIO,
    target: Path,
    base: Path | None = None,
    tensors: Sequence[Tensor] = (),
    base_tensors: Sequence[Tensor] = (),
) -> None:
    """Writes to ``out`` what makes ``target`` of ``base``. Without tensors, or a base, it is compressed alone."""
    compressor = zstandard.ZstdCompressor(level=LEVEL if base else ALONE_LEVEL)
    size = target.stat().st_size
    base_size = base.stat().st_size if base else 0
    plan = list(segments(size, base_size, tensors, base_tensors))
    written: list[tuple[int, int, int]] = []
    with TemporaryFile(dir=Path(out.name).parent) as frames, target.open("rb") as new, open_base(base) as old:
        for length, offset in plan:
            piece = exactly(new, length, target)
            if offset >= 0:
                old.seek(offset)
                piece = xor(piece, exactly(old, length, base))
            frame = compressor.compress(piece)
            frames.write(frame)
            written.append((length, offset, len(frame)))
        header = compressor.compress(json.dumps({"bytes": size, "segments": written}).encode())
        out.write(MAGIC + struct.pack("<I", len(header)) + header)
        frames.seek(0)
        while block := frames.read(SEGMENT_BYTES):
            out.write(block)


def segments(
    size: int, base_size: int, tensors: Sequence[Tensor], base_tensors: Sequence[Tensor]
) -> Iterator[Segment]:
    """The result in order, of at most SEGMENT_BYTES each: tensors of the same name and size against each other."""
    former = {(one.name, one.bytes): one.offset for one in base_tensors}
    runs: list[tuple[int, int, int | None]] = []  # begin, end, how far ahead of them the base's bytes lie

    def add(begin: int, end: int, shift: int | None) -> None:
        if runs and runs[-1][2] == shift:
            runs[-1] = (runs[-1][0], end, shift)
        elif end > begin:
            runs.append((begin, end, shift))

    at, shift = 0, None
    for tensor in sorted(tensors, key=lambda one: one.offset):
        end = tensor.offset + tensor.bytes
        if tensor.offset < at or end > size:
            raise Corrupt(f"tensor {tensor.name} lies outside of its file, or over another tensor")
        add(at, tensor.offset, shift)  # what fills the gap follows the tensor before it
        offset = former.get((tensor.name, tensor.bytes))
        shift = None if offset is None else offset - tensor.offset
        add(tensor.offset, end, shift)
        at = end
    add(at, size, shift)
    for begin, end, shift in runs:
        for start in range(begin, end, SEGMENT_BYTES):
            length = min(SEGMENT_BYTES, end - start)
            there = shift is not None and 0 <= start + shift <= base_size - length
            yield length, start + shift if there and shift is not None else -1


def apply_delta(delta: Path, base: Path | None, out: BinaryIO, size: int) -> None:
    """Writes the ``size`` bytes that ``delta`` makes of ``base``. Raises Corrupt for a delta that makes anything else.

    What comes out is still to be compared with its sha256: a base that is not the right one gives other bytes.
    """
    with delta.open("rb") as packed, open_base(base) as old:
        for length, offset, frame_bytes in read_header(packed, delta, size):
            piece = decompressed(exactly(packed, frame_bytes, delta), length, delta)
            if offset >= 0:
                old.seek(offset)
                piece = xor(piece, exactly(old, length, base))
            out.write(piece)
        if packed.read(1):
            raise Corrupt(f"{delta}: bytes follow the last segment")


def read_header(packed: BinaryIO, delta: Path, size: int) -> list[tuple[int, int, int]]:
    """The segments, each within its bounds, that make ``size`` bytes together. Raises Corrupt."""
    if packed.read(len(MAGIC)) != MAGIC:
        raise Corrupt(f"{delta} is no difference between files")
    (length,) = struct.unpack("<I", exactly(packed, 4, delta))
    if length > MAX_HEADER_BYTES:
        raise Corrupt(f"{delta}: a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
    raw = exactly(packed, length, delta)
    try:
        header = json.loads(decompressed(raw, min(frame_size(raw), MAX_HEADER_BYTES), delta))
        found = [(int(one), int(offset), int(frame)) for one, offset, frame in header["segments"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{delta}: its header cannot be read: {error}") from None
    most = zstandard_bound(SEGMENT_BYTES)
    fits = all(
        0 < one <= SEGMENT_BYTES and offset >= -1 and 0 < frame <= most for one, offset, frame in found
    )
    if not fits or header.get("bytes") != size or sum(one for one, _, _ in found) != size:
        raise Corrupt(f"{delta}: its segments do not make {size} bytes")
    return found


def zstandard_bound(size: int) -> int:
    """The most bytes that zstd makes of ``size``."""
    return size + (size >> 8) + 1024


def frame_size(frame: bytes) -> int:
    try:
        return zstandard.frame_content_size(frame)
    except zstandard.ZstdError:
        return -1


def decompressed(frame: bytes, size: int, where: Path) -> bytes:
    """The ``size`` bytes of a frame. Raises Corrupt where it holds, or claims to hold, others."""
    if frame_size(frame) != size:
        raise Corrupt(f"{where}: a frame of another size than the header says")
    try:
        return zstandard.ZstdDecompressor().decompress(frame, max_output_size=size)
    except zstandard.ZstdError as error:
        raise Corrupt(f"{where}: {error}") from None


def xor(one: bytes, other: bytes) -> bytes:
    return (np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8)).tobytes()


def exactly(file: BinaryIO, length: int, where: Path | None) -> bytes:
    piece = file.read(length)
    if len(piece) != length:
        raise Corrupt(f"{where} ends too early")
    return piece


def open_base(base: Path | None) -> BinaryIO:
    return (base or Path(os.devnull)).open("rb")

"""Read the header of a safetensors file: its tensors without their values."""

from __future__ import annotations

import json
import math
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from everlearn.errors import InvalidInput

MAX_HEADER_BYTES = 32 * 1024**2
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def read_header(file: Path, name: str | None = None) -> dict[str, dict[str, Any]]:
    """Tensor name to ``{"dtype", "shape", "data_offsets"}``; ``name`` stands for the file's own in messages.

    Raises InvalidInput where the header is not as the format asks, or the data it promises is not all there.
    """
    name = name or file.name
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            data_bytes = file.stat().st_size - 8 - size
            if not 2 <= size <= MAX_HEADER_BYTES or data_bytes < 0:
                raise ValueError("it is cut short, or something else")
            header: Any = json.loads(stream.read(size))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")  # noqa: TRY004 (told as damage, like the others)
        tensors = cast("dict[str, dict[str, Any]]", header)
        tensors.pop("__metadata__", None)
        spans = sorted(_span(tensor, entry) for tensor, entry in tensors.items())
        if any(stop != start for (_, stop), (start, _) in pairwise([(0, 0), *spans])):
            raise ValueError("its tensors do not lie end to end")
        if (spans[-1][1] if spans else 0) != data_bytes:
            raise ValueError("it is cut short, or longer than its tensors")
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{name} is not a whole safetensors file: {error}", param=name) from None
    return tensors


def data_start(file: Path) -> int:
    """Where the tensors' bytes begin, of a file that :func:`read_header` read: ``data_offsets`` count from there."""
    with file.open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


def _span(tensor: str, entry: Any) -> tuple[int, int]:
    """Where a tensor's bytes are. Raises ValueError naming the tensor."""
    named = f"tensor {tensor[:80]!r}"
    fields: dict[str, Any] = cast("dict[str, Any]", entry) if isinstance(entry, dict) else {}
    dtype, shape, offsets = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{named} has the unknown dtype {str(dtype)[:80]!r}")
    if not _are_counts(shape):
        raise ValueError(f"{named} has no shape")
    if not _are_counts(offsets) or len(cast("list[int]", offsets)) != 2:
        raise ValueError(f"{named} has no data_offsets")
    start, stop = cast("list[int]", offsets)
    if 8 * (stop - start) != math.prod(cast("list[int]", shape)) * BITS[dtype]:
        raise ValueError(f"{named} has not the bytes that its shape and dtype take")
    return start, stop


def _are_counts(values: Any) -> bool:
    if not isinstance(values, list):
        return False
    items = cast("list[Any]", values)
    return len(items) <= 64 and all(type(one) is int and 0 <= one < 2**63 for one in items)


def count_parameters(directory: Path) -> int:
    """Elements of all tensors in the directory's ``model*.safetensors``."""
    files = directory.glob("model*.safetensors")
    return sum(math.prod(entry["shape"]) for file in files for entry in read_header(file).values())

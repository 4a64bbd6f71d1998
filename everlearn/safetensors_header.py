"""What a safetensors file says of its tensors, without reading them."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from everlearn.errors import InvalidInput


def read_header(file: Path) -> dict[str, dict[str, Any]]:
    """Tensor name to ``{"dtype", "shape", "data_offsets"}``.

    Raises InvalidInput where the header, or the data it promises, is not all there.
    """
    with file.open("rb") as stream:
        try:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size - 8:
                raise ValueError("it is cut short")
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            if 8 + length + end != file.stat().st_size:
                raise ValueError("it is cut short")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error) as error:
            raise InvalidInput(f"{file.name} is damaged: {error}", param=file.name) from None
    return header


def count_parameters(directory: Path) -> int:
    """Elements of all tensors in the directory's ``model*.safetensors``."""
    files = directory.glob("model*.safetensors")
    return sum(math.prod(entry["shape"]) for file in files for entry in read_header(file).values())

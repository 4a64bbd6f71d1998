"""Validate a GGUF file's header: every length and count is checked against the file's size.

Readers trust these lengths: a count of 2^60 is a loop without end, and each element of an array becomes a Python
object. So nothing reads a file that did not pass here.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from everlearn.errors import InvalidInput

MAGIC = b"GGUF"
MAX_NAME_BYTES = 65_535
MAX_ELEMENTS = 2**22
"""Of all arrays together: a vocabulary of 262,144 tokens has four."""
MAX_TENSORS = 2**17
MAX_DIMENSIONS = 4
# The format's types of metadata, by number: bytes of the fixed ones.
FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TEXT, ARRAY = 8, 9
INTEGERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 10: "<Q", 11: "<q"}


@dataclass(frozen=True)
class GgufHeader:
    """``integers``: the whole numbers among the metadata. ``shapes``: of each tensor, as the file has them."""

    integers: dict[str, int]
    shapes: dict[str, tuple[int, ...]]


def check_gguf(file: Path) -> GgufHeader:
    """Raises InvalidInput where the file is none, or its lengths and counts do not fit into it."""
    with file.open("rb") as stream:
        start = stream.read(24)
        if len(start) < 24 or start[:4] != MAGIC:
            raise InvalidInput(f"{file.name} is not a GGUF file", param=file.name)
        (version,) = struct.unpack_from("<I", start, 4)
        if version not in (2, 3):
            raise InvalidInput(
                f"{file.name} is GGUF version {version}; versions 2 and 3 are read", param=file.name
            )
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _Walk(content).header()
            except (ValueError, struct.error) as error:
                reason = str(error) if isinstance(error, ValueError) else "it ends too early"
                raise InvalidInput(
                    f"{file.name} is damaged or cut short: {reason}", param=file.name
                ) from None


class _Walk:
    """Reads on from ``at``. Raises ValueError, and struct.error beyond the end."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content = content
        self.at = 8
        self.elements = 0

    def header(self) -> GgufHeader:
        tensors, fields = self.number("<Q"), self.number("<Q")
        if tensors > MAX_TENSORS or tensors * 24 + fields * 12 > len(self.content):
            raise ValueError(f"it names {tensors} tensors and {fields} fields")
        integers: dict[str, int] = {}
        keys: set[str] = set()
        for _ in range(fields):
            key = self.text()
            if key in keys:
                raise ValueError(f"it has the field {key!r} twice")
            keys.add(key)
            kind = self.number("<I")
            if kind in INTEGERS:
                integers[key] = self.number(INTEGERS[kind])
            else:
                self.skip(kind, key)
        places = [self.tensor() for _ in range(tensors)]
        alignment = integers.get("general.alignment", 32)
        if alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment}, no power of two")
        data_bytes = len(self.content) - self.at
        for name, _, offset in places:
            if offset >= max(data_bytes, 1):
                raise ValueError(f"the tensor {name!r} lies beyond its end")
        shapes = {name: shape for name, shape, _ in places}
        if len(shapes) < len(places):
            raise ValueError("two tensors have one name")
        return GgufHeader(integers, shapes)

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.content, self.at)
        self.at += struct.calcsize(form)
        return value

    def advance(self, size: int, what: str) -> None:
        if size > len(self.content) - self.at:
            raise ValueError(f"{what} has {size} bytes, more than are left")
        self.at += size

    def text(self) -> str:
        """A name."""
        size = self.number("<Q")
        if size > MAX_NAME_BYTES:
            raise ValueError(f"a name has {size} bytes")
        start = self.at
        self.advance(size, "a name")
        return self.content[start : self.at].decode("utf-8", "strict")

    def skip(self, kind: int, key: str) -> None:
        """A value that is not needed here."""
        if kind in FIXED:
            self.advance(FIXED[kind], key)
        elif kind == TEXT:
            self.advance(self.number("<Q"), key)
        elif kind == ARRAY:
            self.array(key)
        else:
            raise ValueError(f"{key} has the unknown type {kind}")

    def array(self, key: str) -> None:
        kind, count = self.number("<I"), self.number("<Q")
        self.elements += count
        if self.elements > MAX_ELEMENTS:
            raise ValueError(
                f"{key} brings its arrays to {self.elements} elements; at most {MAX_ELEMENTS} are read"
            )
        if kind in FIXED:
            self.advance(FIXED[kind] * count, key)
        elif kind == TEXT:
            for _ in range(count):
                self.advance(self.number("<Q"), key)
        else:
            raise ValueError(f"{key} is an array of the type {kind}: arrays of numbers and texts are read")

    def tensor(self) -> tuple[str, tuple[int, ...], int]:
        """Name, shape, and offset in the data."""
        name = self.text()
        dimensions = self.number("<I")
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(
                f"the tensor {name!r} has {dimensions} dimensions; at most {MAX_DIMENSIONS} are read"
            )
        shape = tuple(self.number("<Q") for _ in range(dimensions))
        self.number("<I")
        # A weight takes an eighth of a byte at least.
        if math.prod(shape) > 8 * len(self.content):
            raise ValueError(f"the tensor {name!r} has the shape {list(shape)}, more than are left")
        return name, shape, self.number("<Q")

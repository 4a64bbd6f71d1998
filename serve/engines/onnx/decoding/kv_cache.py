"""The KV cache: memory that is committed when written, and one row of it mapped at several addresses.

`Decoder` has one for the keys and one for the values of each layer; `Batch` says who holds which row.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import sys

import numpy as np
from numpy.typing import NDArray

from everlearn.errors import Unsupported

MAP_FIXED = 0x10
"""Linux's; Python's mmap does not offer it."""


Element = type[np.float32] | type[np.int8]
"""What keys and values are kept as; the graph says which."""

Block = NDArray[np.float32] | NDArray[np.int8]


class Cache:
    """Keys or values of one layer, (rows, kv_heads, capacity, head_size); a page takes memory once written.

    With `views`, `first_row` (views, kv_heads, capacity, head_size) is row 0 so many times over: the same memory.
    Tools that add up a process's mappings count it as often; the system has it once.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: Element, views: int = 0) -> None:
        self.row_bytes = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        self.pages, self.array = reserve(shape, dtype)
        self.file = open_in_memory(self.row_bytes) if views else None
        if self.file:
            self.windows, self.first_row = reserve((views, *shape[1:]), dtype)
            for row in (self.array[0], *self.first_row):
                map_file(self.file.fileno(), row)

    def release(self, row: int) -> None:
        """Give the memory of `row` back; its content is lost."""
        if row == 0 and self.file:
            self.file.truncate(0)
            self.file.truncate(self.row_bytes)
        elif hasattr(mmap, "MADV_DONTNEED"):
            self.pages.madvise(mmap.MADV_DONTNEED, row * self.row_bytes, self.row_bytes)


def reserve(shape: tuple[int, int, int, int], dtype: Element) -> tuple[mmap.mmap, Block]:
    """Addresses without memory, and the array there."""
    size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return pages, np.frombuffer(pages, dtype=dtype).reshape(shape)


def open_in_memory(size_bytes: int) -> io.FileIO:
    """A file that has memory alone, and none until it is written."""
    if sys.platform != "linux":
        raise Unsupported("onnx.speculative_tokens needs Linux; set it to 0", param="onnx.speculative_tokens")
    file = io.FileIO(os.memfd_create("keys-and-values"), "r+")
    file.truncate(size_bytes)
    return file


def map_file(file: int, row: Block) -> None:
    """Have the addresses of `row` show the beginning of `file`."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    access, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | MAP_FIXED
    if libc.mmap(row.ctypes.data, row.nbytes, access, flags, file, 0) != row.ctypes.data:
        raise OSError(ctypes.get_errno(), "mmap of keys and values failed")

"""Files that are small and stand for much."""

import gzip
import io
import struct
from typing import Any

import pyarrow
from pyarrow.parquet import write_table


def repeated(value: Any, count: int) -> pyarrow.DictionaryArray:
    """A column in which one value comes ``count`` times: it lies in the file once."""
    return pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * count, pyarrow.int32()), pyarrow.array([value])
    )


def parquet(**columns: Any) -> bytes:
    stream = io.BytesIO()
    write_table(
        pyarrow.table(columns), stream, compression="zstd", write_statistics=False,
        dictionary_pagesize_limit=2**31 - 1,
    )  # fmt: skip
    return stream.getvalue()


def lists(inner: Any) -> pyarrow.ListArray:
    """One row that is a list of all of ``inner``."""
    return pyarrow.ListArray.from_arrays(pyarrow.array([0, len(inner)], pyarrow.int32()), inner)


def messages(count: int, content: str) -> pyarrow.ListArray:
    """One row: a conversation of ``count`` messages."""
    columns = [repeated("user", count), repeated(content, count)]
    return lists(pyarrow.StructArray.from_arrays(columns, names=["role", "content"]))


def one_value_for_256_rows() -> bytes:
    return parquet(text=repeated("x" * (60 * 2**20), 256))


def one_value_in_lists_of_one_length(kind: str) -> bytes:
    """Eight rows, the same conversation in each: lists that are no plain lists."""
    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    column = pyarrow.list_(message, 2) if kind == "fixed" else pyarrow.list_view(message)
    said = [{"role": "user", "content": "x" * 20_000_000}, {"role": "assistant", "content": "y"}]
    return parquet(messages=pyarrow.array([said] * 8, column))


def values_of_one_length() -> bytes:
    return parquet(text=pyarrow.array([b"x" * 20_000_000] * 8, pyarrow.binary(20_000_000)))


def nulls_without_end() -> bytes:
    """Within every limit that can be told before reading, and half a gigabyte in memory."""
    return parquet(messages=lists(pyarrow.nulls(2**25 - 1, pyarrow.string())))


def lying_page() -> bytes:
    """A page whose header, in Thrift's compact form, says that it unpacks to 2 GiB."""
    content = parquet(text=["abcdef"] * 100)
    assert content[4:8] == b"\x15\x04\x15\x14"  # a dictionary's page, of 10 bytes
    return content[:7] + b"\xfe\xff\xff\xff\x0f" + content[8:]


def gzipped_lines(line: bytes, count: int) -> bytes:
    """Compressed a thousandfold."""
    return gzip.compress(line * count, 6)


def gzip_with_a_long_name(size: int) -> bytes:
    return b"\x1f\x8b\x08\x08" + struct.pack("<IBB", 0, 0, 3) + b"a" * size

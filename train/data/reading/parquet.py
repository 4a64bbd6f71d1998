"""Rows of a Parquet file as examples, some at a time.

A few bytes of Parquet can stand for any number of rows, each with the same long text: texts stay in the file's own
dictionaries until a row's size is known, and no row becomes Python's before.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everlearn.errors import InvalidInput
from train.data.examples import RawExample
from train.data.reading.schema import UNLABELLED, Schema
from train.data.reading.tables import columns_read
from train.data.reading.unpacked import Unpacked

ROWS_AT_ONCE = 256
MAX_GROUP_BYTES = 2**30
"""What a row group may take in memory: a reader must unpack its columns as wholes."""
MAX_GROUP_VALUES = 2**25
"""And how many values one of its columns may have: repeated ones take no bytes in the file."""
MAX_FIXED_BYTES = 1024
"""What each value of a column may take whose values all have one length: such a column has no dictionary here."""
ELEMENT_BYTES = 16
"""What a number, a null, a list or a row itself counts as."""


def read_parquet(
    path: Path, name: str, max_row_bytes: int, unpacked: Unpacked, schema: Schema = UNLABELLED
) -> Iterator[RawExample]:
    """The rows in order. Raises InvalidInput naming the file and the row, counted from 1."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            _check_columns(file, name)
            texts = _texts(file.schema)
        with ParquetFile(path, read_dictionary=texts) as file:
            _check_groups(file, name)
            names: list[str] = file.schema_arrow.names
            known = columns_read(names, name, schema)
            ignored = tuple(column for column in names if column not in known)
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=list(known)):
                for rows in _portions(batch, name, number, max_row_bytes, unpacked):
                    for record in rows.to_pylist():
                        number += 1
                        said = {known[column]: _without_nulls(value) for column, value in record.items()}
                        yield schema.parse(said, f"{name}:{number}", ignored)
    except MemoryError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, NotImplementedError, OverflowError) as error:
        where = f"{name}:{number + 1}: cannot be read" if number else f"{name}: is not whole Parquet"
        raise _fault(f"{where}: {_short(error)}", "Write the file again") from None


def _check_columns(file: Any, name: str) -> None:
    for at in range(len(file.schema.names)):
        column = file.schema.column(at)
        if column.physical_type == "FIXED_LEN_BYTE_ARRAY" and column.length > MAX_FIXED_BYTES:
            raise _fault(
                f'{name}: the column "{column.path[:80]}" has values of {column.length} bytes each',
                "Write them as texts",
            )


def _texts(schema: Any) -> list[str]:
    """Paths of the columns that hold texts."""
    columns = (schema.column(at) for at in range(len(schema.names)))
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _check_groups(file: Any, name: str) -> None:
    for at in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(at)
        columns = [group.column(column) for column in range(group.num_columns)]
        size = max(group.total_byte_size, sum(column.total_uncompressed_size for column in columns))
        if size > MAX_GROUP_BYTES:
            raise _fault(
                f"{name}: row group {at} takes {size} bytes in memory",
                f"Write row groups of at most {MAX_GROUP_BYTES} bytes",
            )
        values = max((column.num_values for column in columns), default=0)
        if max(values, group.num_rows) > MAX_GROUP_VALUES:
            raise _fault(
                f"{name}: row group {at} has {max(values, group.num_rows)} values in a column",
                f"Write row groups of at most {MAX_GROUP_VALUES} values",
            )


def _portions(batch: Any, name: str, before: int, max_row_bytes: int, unpacked: Unpacked) -> Iterator[Any]:
    """The batch in parts that take about one row's limit each. Raises InvalidInput naming the row that is larger."""
    sizes = sum((_sizes(column) for column in batch.columns), np.zeros(batch.num_rows, np.int64))
    if batch.num_rows and sizes.max() > max_row_bytes:
        row = int(np.argmax(sizes > max_row_bytes))
        raise _fault(
            f"{name}:{before + row + 1}: the row takes {sizes[row]} bytes",
            f"Split it into several of at most {max_row_bytes} bytes",
        )
    ends = np.cumsum(sizes)
    start = 0
    while start < batch.num_rows:
        taken = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, taken + max_row_bytes, side="right")))
        unpacked.add(int(ends[stop - 1] - taken), f"{name}:{before + start + 1}")
        yield batch.slice(start, stop - start)
        start = stop


def _sizes(array: Any) -> NDArray[np.int64]:
    """What each element takes, in bytes; int64 (len(array),). Texts are not unpacked for it.

    Raises ArrowNotImplementedError for lists of a kind that is not known here.
    """
    import pyarrow
    import pyarrow.compute as pc
    from pyarrow import types

    kind = array.type
    if types.is_dictionary(kind):
        lengths = np.append(_numbers(pc.binary_length(array.dictionary)), 0)
        return ELEMENT_BYTES + lengths[_numbers(array.indices, missing=-1)]
    if (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    ):
        return ELEMENT_BYTES + _numbers(pc.binary_length(array))
    if types.is_struct(kind):
        fields = (_sizes(array.field(at)) for at in range(kind.num_fields))
        return sum(fields, np.full(len(array), ELEMENT_BYTES, np.int64))
    if types.is_fixed_size_list(kind):
        inner = _sizes(array.values).reshape(-1, kind.list_size).sum(axis=1)
        return ELEMENT_BYTES + inner[array.offset : array.offset + len(array)]
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        ends = np.concatenate([[0], np.cumsum(_sizes(array.values))])
        offsets = _numbers(array.offsets)
        return ELEMENT_BYTES + ends[offsets + _numbers(array.sizes)] - ends[offsets]
    if types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        ends = np.concatenate([[0], np.cumsum(_sizes(_elements(array)))])
        offsets = _numbers(array.offsets)
        return ELEMENT_BYTES + ends[offsets[1:] - offsets[0]] - ends[offsets[:-1] - offsets[0]]
    if types.is_nested(kind):
        raise pyarrow.ArrowNotImplementedError(f"{kind} cannot be measured")
    return np.full(len(array), ELEMENT_BYTES, np.int64)


def _elements(array: Any) -> Any:
    """What the lists of an array hold, end to end, from its first offset on."""
    from pyarrow import StructArray, types

    start, stop = array.offsets[0].as_py(), array.offsets[-1].as_py()
    if types.is_map(array.type):
        return StructArray.from_arrays(
            [array.keys[start:stop], array.items[start:stop]], names=["key", "value"]
        )
    return array.values[start:stop]


def _numbers(array: Any, missing: int = 0) -> NDArray[np.int64]:
    import pyarrow.compute as pc

    return pc.fill_null(array, missing).to_numpy(zero_copy_only=False).astype(np.int64)


def _without_nulls(value: Any) -> Any:
    """Parquet gives every struct all its fields; those that a row does not have are null."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _fault(wrong: str, right: str) -> InvalidInput:
    return InvalidInput(f"{wrong}. {right}", param="training_file")

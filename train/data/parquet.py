"""Rows of a Parquet file as examples, some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from everlearn.errors import InvalidInput
from train.data.examples import RawExample, parse_record

ROWS_AT_ONCE = 256
MAX_GROUP_BYTES = 2**30
"""What a row group may take in memory: a reader must unpack its columns as wholes."""

COLUMNS = ("text", "messages", "tools", "prompt", "completion")


def read_parquet(path: Path, name: str) -> Iterator[RawExample]:
    """The rows in order. Raises InvalidInput naming the file and the row, counted from 1."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise _fault(f"{name}: is not whole Parquet: {_short(error)}", "Write it again") from None
    with file:
        present = [column for column in COLUMNS if column in file.schema_arrow.names]
        if not {"text", "messages", "prompt"} & set(present):
            found = ", ".join(f'"{column}"' for column in file.schema_arrow.names[:8])
            raise _fault(
                f"{name}: has the columns {found}",
                'Right would be "messages", "text", or "prompt" and "completion"',
            )
        _check_groups(file, name)
        number = 0
        try:
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=present):
                for record in batch.to_pylist():
                    number += 1
                    yield parse_record(_without_nulls(record), f"{name}:{number}")
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _fault(
                f"{name}:{number + 1}: cannot be read: {_short(error)}", "Write the file again"
            ) from None


def _check_groups(file, name: str) -> None:  # type: ignore[no-untyped-def]
    for group in range(file.metadata.num_row_groups):
        size = file.metadata.row_group(group).total_byte_size
        if size > MAX_GROUP_BYTES:
            raise _fault(
                f"{name}: row group {group} takes {size} bytes in memory",
                f"Write row groups of at most {MAX_GROUP_BYTES} bytes",
            )


def _without_nulls(value):  # type: ignore[no-untyped-def]
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

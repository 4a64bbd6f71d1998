"""Rows of CSV and TSV files with named columns, as records."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import chain

from train.data.reading.forms import Record, UnknownForm, unpacked_json
from train.data.reading.lines import Reader, lines, wrong
from train.data.reading.schema import UNLABELLED, Schema

DELIMITERS = {"csv": ",;\t", "tsv": "\t"}
QUOTES = 'Put cells that hold a comma, a line break or " between quotation marks, and double those within'
MAX_COLUMNS = 1000
RIGHT_TABLE = "a table in UTF-8 whose first row names its columns"


def columns_read(names: Sequence[str], where: str, schema: Schema = UNLABELLED) -> dict[str, str]:
    """Which of a table's columns are read, and as what: names in another case, or with spaces around, count.

    Raises InvalidInput that begins with ``where`` if two are the same, UnknownForm if none of them starts a form.
    """
    known: dict[str, str] = {}
    for name in names:
        plain = name.strip().strip("\ufeff").lower()
        if plain in known.values() and plain in schema.known:
            raise wrong(f'{where}: has the column "{plain}" twice', "Keep one of them")
        if plain in schema.known:
            known[name] = plain
    if not schema.is_enough(known.values()):
        shown = ", ".join(f'"{name[:80]}"' for name in list(names)[:8]) or "no columns"
        raise UnknownForm(f"{where}: has the columns {shown}. {schema.right}", param="training_file")
    return known


def rows(
    reader: Reader, kind: str, schema: Schema = UNLABELLED
) -> Iterator[tuple[int, Record, tuple[str, ...]]]:
    """Each row with the line that it begins in, and the names of columns that are not read.

    Cells of columns that hold lists are JSON. Raises InvalidInput naming the line.
    """
    numbered = _Counted(reader)
    header_line = next((line for line in numbered if line.strip()), None)
    if header_line is None:
        return
    delimiter = _delimiter(header_line, kind, schema)
    csv.field_size_limit(max(csv.field_size_limit(), reader.limits.max_row_bytes))  # of the whole process
    try:
        table = csv.reader(chain([header_line], numbered), delimiter=delimiter, strict=True)
        names = next(table)
        where = f"{reader.name}:{numbered.number}"
        if len(names) > MAX_COLUMNS:
            raise UnknownForm(
                f"{where}: has {len(names)} columns. A table may have {MAX_COLUMNS}", param="training_file"
            )
        known = columns_read(names, where, schema)
        ignored = tuple(name for name in names if name not in known)
        begin = numbered.begin()
        for cells in table:
            where = f"{reader.name}:{begin}"
            if cells and any(cell.strip() for cell in cells):
                if len(cells) != len(names):
                    raise wrong(
                        f"{where}: has {len(cells)} cells, and the first row names {len(names)} columns",
                        QUOTES,
                    )
                if delimiter == "\t" and any(
                    "\n" in cell and cell.count("\t") >= len(names) - 1 > 0 for cell in cells
                ):
                    raise wrong(f'{where}: has a cell that begins with " and goes on over other rows', QUOTES)
                yield begin, _record(dict(zip(names, cells, strict=True)), known, where, schema), ignored
            begin = numbered.begin()
    except csv.Error as error:
        is_mac = "\r" in numbered.last.rstrip("\r\n")
        right = (
            "Save it with line breaks as of Unix or Windows" if is_mac else f"Right would be {RIGHT_TABLE}"
        )
        raise wrong(
            f"{reader.name}:{max(1, numbered.first)}: is not {kind.upper()}: {error}", right
        ) from None


class _Counted:
    """Lines with their ends; how many bytes one row takes is bounded."""

    def __init__(self, reader: Reader) -> None:
        self._lines = lines(reader, RIGHT_TABLE)
        self._name, self._most = reader.name, reader.limits.max_row_bytes
        self.number = self.first = self._size = 0
        self.last = ""

    def begin(self) -> int:
        """A row begins after here; returns its line."""
        self._size, self.first = 0, self.number + 1
        return self.first

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> str:
        self.number, line = next(self._lines)
        self.last = line
        self._size += 4 * len(line)
        if self._size > 4 * self._most:
            raise wrong(
                f"{self._name}:{self.first}: the row is longer than {self._most} characters",
                "Close its quotes",
            )
        return line + "\n"


def _delimiter(header: str, kind: str, schema: Schema) -> str:
    """The one that the names of the first row stand between; spreadsheets of some countries write ";"."""

    def found(delimiter: str) -> int:
        return sum(name.strip(' "\r\n\ufeff').lower() in schema.known for name in header.split(delimiter))

    return max(DELIMITERS[kind], key=found)


def _record(cells: dict[str, str], known: dict[str, str], where: str, schema: Schema) -> Record:
    """Empty cells of what may be left out are nothing; lists are unpacked."""
    record: Record = {}
    for name, key in known.items():
        cell = cells[name]
        if key in schema.unpacked and cell.lstrip()[:1] in ("[", "{"):
            record[key] = unpacked_json(cell, f'{where}: "{key}"')
        elif cell or key not in schema.lists:
            record[key] = cell
    return record

"""The tables of targets and methods in docs/compressing.md: ``python -m tests.compress.tables`` writes them anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from compress.quantize.methods import methods_table
from compress.targets.table import targets_table

PAGE = Path(__file__).parents[2] / "docs" / "compressing.md"
TABLES: Mapping[str, Callable[[], list[str]]] = {"targets": targets_table, "methods": methods_table}


def parts(page: str, name: str) -> tuple[str, str, str]:
    """What stands before a table's lines, the lines, and what stands behind them."""
    before, mark, rest = page.partition(f"<!-- table: {name} -->\n")
    table, end, after = rest.partition("<!-- end -->")
    assert mark and end, f"docs/compressing.md has no marks for the table of {name}"
    return before + mark, table, end + after


def written(name: str) -> list[str]:
    """A table as the page has it, line by line."""
    return parts(PAGE.read_text(), name)[1].splitlines()


def main() -> None:
    """Writes the tables of the page anew."""
    for name, lines in TABLES.items():
        before, _, after = parts(PAGE.read_text(), name)
        PAGE.write_text(before + "".join(f"{line}\n" for line in lines()) + after)


if __name__ == "__main__":
    main()

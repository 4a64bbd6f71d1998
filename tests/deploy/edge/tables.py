"""The tables of targets and forms in docs/edge.md: ``python -m tests.deploy.edge.tables`` writes them anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from deploy.edge.targets import forms_table, targets_table
from tests.compress.tables import parts
from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "edge.md"
TABLES: Mapping[str, Callable[[], list[str]]] = {"targets": targets_table, "forms": forms_table}


def main() -> None:
    """Writes the tables of the page anew."""
    for name, lines in TABLES.items():
        before, _, after = parts(PAGE.read_text(), name)
        PAGE.write_text(before + "".join(f"{line}\n" for line in lines()) + after)


if __name__ == "__main__":
    main()

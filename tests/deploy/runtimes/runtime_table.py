"""The table of families in docs/other-runtimes.md: ``python -m tests.deploy.runtimes.runtime_table RUNTIME…`` measures these columns.

Needs ``make install-runtimes``. Every family is a tiny random model, converted and compared with torch in the child.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deploy.runtimes.environment import ENVIRONMENT
from deploy.runtimes.table import RUNTIMES

PAGE = Path(__file__).parents[3] / "docs" / "other-runtimes.md"
OVERVIEW, BEGIN, END = "<!-- table: runtimes -->", "<!-- table: measured -->", "<!-- end -->"


def rows(begin: str = BEGIN) -> list[str]:
    """The lines of a table on the page."""
    return PAGE.read_text().partition(begin)[2].partition(END)[0].strip().splitlines()


def overview() -> Iterator[str]:
    """The first table, as deploy/runtimes/table.py says it."""
    yield "| `--to` | runtime | packages | files | models | a text's length | chat |"
    yield "|---|---|---|---|---|---|---|"
    lengths = {"any": "any", "limited": "at most `--context`", "fixed": "padded to `--context`"}
    for name, one in RUNTIMES.items():
        packages = ", ".join(f"`{package}` {version}" for package, version in one.packages.items())
        tasks = "decoders, encoders" if "embed" in one.tasks else "decoders"
        families = f" ({', '.join(sorted(one.families))})" if one.families else ""
        cells = (
            f"`{name}`",
            one.title,
            packages,
            one.files,
            tasks + families,
            lengths[one.lengths],
            one.chat,
        )
        yield f"| {' | '.join(cells)} |"


def written() -> dict[str, dict[str, str]]:
    """What the page says: family → runtime → what was measured."""
    head, _, *lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows()]
    return {name: dict(zip(head[1:], cells, strict=True)) for name, *cells in lines}


def write_models(folder: Path) -> list[str]:
    """A directory for each family of ``architecture_rows`` with plain positions, one with a window, one with scaling."""
    from tests.support.architecture_rows import working, write

    kinds = (
        "plain rotary positions",
        "a window of 100 tokens",
        "rotary positions llama3",
        "two kinds of layers",
    )
    chosen = [row for row in working() if row.variant in kinds]
    first = [row for row in chosen if row.variant == kinds[0]]
    others = [
        row
        for row in chosen
        if row.architecture.startswith(("Llama", "Mistral", "Gemma3")) and row not in first
    ]
    for at, row in enumerate([*first, *others]):
        write(row.config, folder / f"{at:02} {row.name}")
    return [row.name for row in [*first, *others]]


def measure(folder: Path, runtimes: list[str]) -> None:
    """In the runtimes' environment: a cell a line."""
    from deploy.runtimes.child import convert
    from everlearn.errors import Unsupported

    for model in sorted(folder.iterdir()):
        for name in runtimes:
            with tempfile.TemporaryDirectory() as out:
                request = {"source": str(model), "out": out, "task": "generate", "context": 128, "threads": 1}
                try:
                    made = convert({**request, "backend": RUNTIMES[name].backend}, lambda *_: None)
                    cell = f"{made['difference']:.0e}"
                except Unsupported as refused:
                    cell = refused.message[:160].replace("|", "/")
            print(f"\t{model.name[3:]}\t{name}\t{cell}", flush=True)


def measured(folder: Path, runtimes: list[str]) -> Iterator[tuple[str, str, str]]:
    """Family, runtime and cell of every model in ``folder``, from one process in the runtimes' environment."""
    python = Path(sys.prefix).with_name(Path(sys.prefix).name + ENVIRONMENT) / "bin" / "python"
    argv = [python, "-m", "tests.deploy.runtimes.runtime_table", "--measure", folder, *runtimes]
    path = {"PYTHONPATH": str(PAGE.parents[1])}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=os.environ | path) as child:
        assert child.stdout
        for line in child.stdout:
            if line.startswith("\t"):
                name, runtime, cell = line.strip().split("\t")
                yield f"`{name.replace(', ', '`, ')}", runtime, cell


def main(runtimes: list[str]) -> None:
    """Measures these columns and writes them into the page; the others stay."""
    table = written()
    with tempfile.TemporaryDirectory() as folder:
        names = write_models(Path(folder))
        for name, runtime, cell in measured(Path(folder), runtimes):
            table.setdefault(name, {})[runtime] = cell
            print(name, runtime, cell, flush=True)
    columns = list(RUNTIMES)
    lines = [f"| family | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    known = [f"`{name.replace(', ', '`, ')}" for name in names]
    lines += [
        f"| {name} | {' | '.join(table.get(name, {}).get(one, 'not measured') for one in columns)} |"
        for name in known
    ]
    replace(BEGIN, lines)
    replace(OVERVIEW, [*overview()])


def replace(begin: str, lines: list[str]) -> None:
    before, _, rest = PAGE.read_text().partition(begin)
    PAGE.write_text("\n".join([f"{before}{begin}", *lines, f"{END}{rest.partition(END)[2]}"]))


if __name__ == "__main__":
    if sys.argv[1] == "--measure":
        measure(Path(sys.argv[2]), sys.argv[3:])
    else:
        main(sys.argv[1:] or list(RUNTIMES))

"""The table of objectives in docs/training.md: ``python -m tests.train.objectives.objective_table`` writes it anew."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tests.setup.test_layers import modules
from train.objectives.table import OBJECTIVES, markdown, trainable

PAGE = Path(__file__).parents[3] / "docs" / "training.md"
BEGIN, END = "<!-- table: objectives -->\n", "\n<!-- end -->"


def generated() -> str:
    """The table, with the objectives of every module that registers one."""
    for name, path in modules().items():
        if "\nregister_objective(" in path.read_text():
            import_module(name)
    own = trainable()
    others = sorted((spec for spec in OBJECTIVES.values() if spec not in own), key=lambda spec: spec.name)
    return markdown([*own, *others])


def written() -> str:
    """What the page shows."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + generated() + END + rest.partition(END.lstrip())[2])


if __name__ == "__main__":
    main()

"""The table of engines in docs/serving.md: ``python -m tests.serve.engines.engine_table`` writes it anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from serve.engines.programs import ENGINES, EngineProgram

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"
BEGIN, END = "<!-- table: engines -->\n", "<!-- end -->"
TASKS = {
    "generate": "text models",
    "embed": "encoders",
    "text2text": "encoder-decoders",
    "classify": "classifiers",
    "score": "rerankers",
    "token_classify": "token classifiers",
    "question_answer": "question answering",
    "image_text": "models of images and texts",
}

ROWS: dict[str, Callable[[EngineProgram], str]] = {
    "`serve.engine`": lambda engine: f"`{engine.name}`",
    "serves": lambda engine: ", ".join(TASKS[task] for task in engine.tasks),
    "reads": lambda engine: listed(engine.formats),
    "serves with `auto`": lambda engine: listed(engine.by_default),
    "suited to": lambda engine: engine.suited_to,
    "starts in": lambda engine: engine.starts_in,
    "installed by": lambda engine: f"`{engine.install}`",
}


def listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def lines() -> list[str]:
    """The table, with one column per engine."""
    engines = list(ENGINES.values())
    titles = [engine.title.removeprefix("the ") for engine in engines]
    rows = [[row, *(tell(engine) for engine in engines)] for row, tell in ROWS.items()]
    return [f"| {' | '.join(cells)} |" for cells in (["", *titles], ["---"] * (len(engines) + 1), *rows)]


def parts(page: str) -> tuple[str, list[str], str]:
    """What stands before the table, its lines, and what stands behind them."""
    before, begin, rest = page.partition(BEGIN)
    table, end, after = rest.partition(END)
    assert begin and end, f"{PAGE.name} has no marks for the table of engines"
    return before + begin, table.splitlines(), end + after


def main() -> None:
    """Write the page's table anew."""
    before, _, after = parts(PAGE.read_text())
    PAGE.write_text(before + "".join(f"{line}\n" for line in lines()) + after)


if __name__ == "__main__":
    main()

"""docs/other-runtimes.md says what the code's table says, and its figures are those of this machine's runtimes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy.runtimes.table import BOUND, JAX_FAMILIES, RUNTIMES
from tests.deploy.runtimes import runtime_table as table
from tests.deploy.runtimes.installed import why_not
from tests.support.architecture_rows import working, write

CHEAP = ["openvino", "mlx", "jax"]
MEASURED = ("LlamaForCausalLM, rotary positions llama3", "MistralForCausalLM, a window of 100 tokens")
"""One that all three compute, and one that mlx-lm computes without its window."""
ABSENT = next((reason for name in CHEAP for reason in [why_not(name)] if reason), "")


def test_the_page_has_the_table_of_the_code() -> None:
    assert table.rows(table.OVERVIEW) == [*table.overview()], (
        "run python -m tests.deploy.runtimes.runtime_table"
    )


def test_every_family_has_a_figure_or_a_reason_for_every_runtime() -> None:
    written = table.written()
    assert len(written) >= 14 and all(set(cells) == set(RUNTIMES) for cells in written.values())
    for cells in written.values():
        assert all(float(cell) <= BOUND for cell in cells.values() if re.fullmatch(r"\de-\d\d", cell))
    known = {name for name, cells in written.items() if re.fullmatch(r"\de-\d\d", cells["jax"])}
    assert {re.sub("^`|ForCausalLM.*", "", name).lower() for name in known} == JAX_FAMILIES


@pytest.mark.slow
@pytest.mark.skipif(bool(ABSENT), reason=ABSENT)
def test_the_page_says_what_is_measured(tmp_path: Path) -> None:
    for at, row in enumerate(row for row in working() if row.name in MEASURED):
        write(row.config, tmp_path / f"{at:02} {row.name}")
    found = [*table.measured(tmp_path, CHEAP)]
    assert len(found) == 6
    for name, runtime, cell in found:
        said = table.written()[name][runtime]
        assert (
            (float(cell) <= BOUND)
            if re.fullmatch(r"\de-\d\d", said)
            else cell.split(" by ")[0] == said.split(" by ")[0]
        )

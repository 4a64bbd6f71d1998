"""docs/edge.md has the tables of targets and forms as the code has them; so has the command's help."""

import pytest
from typer.testing import CliRunner

from deploy.edge.targets import TARGETS
from everlearn.cli.commands import app
from tests.compress.tables import parts
from tests.deploy.edge.tables import PAGE, TABLES


@pytest.mark.parametrize("name", list(TABLES))
def test_the_page_has_the_table(name: str) -> None:
    assert parts(PAGE.read_text(), name)[1].splitlines() == TABLES[name]()


def test_help_names_every_target_and_its_forms() -> None:
    said = " ".join(CliRunner().invoke(app, ["deploy", "edge", "--help"], terminal_width=200).output.split())
    for target, of in TARGETS.items():
        assert f"{target}: {of.forms['generate'][0]}" in said

"""``everlearn deploy``: ship a model to devices."""

from __future__ import annotations

import typer

from deploy.edge.cli import check, edge
from deploy.edge.native.cli import runner
from deploy.runtimes.cli import convert
from deploy.updates.cli import channel

commands = typer.Typer()
deploy = typer.Typer(name="deploy", help="Ship a model to devices.", no_args_is_help=True)
commands.add_typer(deploy)
deploy.command()(edge)
deploy.command()(check)
deploy.command()(runner)
deploy.command()(convert)
deploy.add_typer(channel)

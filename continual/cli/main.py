"""The commands of continual training, as the entry point ``everlearn.commands`` names them."""

import typer

from continual.cli.jobs import jobs, worker
from continual.cli.lineage import lineage
from continual.cli.replay import replay

commands = typer.Typer()
commands.add_typer(jobs)
commands.add_typer(replay)
commands.command()(worker)
commands.command()(lineage)

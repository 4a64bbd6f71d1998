"""The commands of continual training, as the entry point ``everlearn.commands`` names them."""

import typer

from continual.cli.jobs import jobs, worker
from continual.cli.lineage import lineage
from continual.cli.replay import replay
from continual.cli.webhooks import webhooks

commands = typer.Typer()
commands.add_typer(jobs)
commands.add_typer(replay)
commands.add_typer(webhooks)
commands.command()(worker)
commands.command()(lineage)

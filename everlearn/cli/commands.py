"""The one program, ``everlearn``, and the table of its commands.

The kernel's own commands are registered here. Every other room, and every other package, brings its own by an entry
point of the group ``everlearn.commands``: a ``typer.Typer`` whose commands join these. Such a module imports its room
and libraries inside the commands alone, so that help answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command_name

from everlearn.cli.audit import audit
from everlearn.cli.import_model import import_
from everlearn.cli.installation import config, doctor, health, version
from everlearn.cli.keys import keys
from everlearn.cli.models import alias, gc, ls, promote, rm, rollback, show
from everlearn.cli.usage import usage
from everlearn.errors import EverlearnError

GROUP = "everlearn.commands"
"""Of entry points: each names a ``typer.Typer``."""

EPILOG = (
    "Exit codes: 0 done · 1 refused, or failed for the reason printed · 2 wrong input or settings · "
    "70 a fault in everlearn (EVERLEARN_DEBUG=1 shows where) · 130 interrupted."
)


class Commands(TyperGroup):
    """Prints an error as one message, and exits with its code."""

    def invoke(self, ctx: Any) -> Any:
        if os.environ.get("EVERLEARN_DEBUG") == "1":
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except EverlearnError as error:
            code, message = error.exit_code, error.message
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except OSError as error:
            code, message = 1, _os_fault(error)
        except KeyboardInterrupt:
            code, message = 130, "interrupted"
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except Exception as error:  # noqa: BLE001 (the last resort of a program)
            code, message = 70, f"{type(error).__name__}: {error} (EVERLEARN_DEBUG=1 shows where)"
        from everlearn.printing import print_error
        from everlearn.settings import ERROR_FILE

        print_error(message)
        if path := os.environ.get(ERROR_FILE):
            with open(path, "w") as file:
                file.write(message)
        raise typer.Exit(code)


def _os_fault(error: OSError) -> str:
    """A copy that fails names its source first; it is the other end whose disk is full."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    named = (error.filename2 if full else None) or error.filename or "input/output"
    remedy = ": make room there, and give the command again" if full else ""
    return f"{named}: {error.strerror or error}{remedy}"


app = typer.Typer(
    name="everlearn",
    cls=Commands,
    help="Own your small language models: compress them, serve them, keep them learning.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.command("import")(import_)
for command in (ls, show, rm, gc, promote, rollback, alias):
    app.command()(command)
app.add_typer(keys)
for command in (audit, usage, config, doctor, health, version):
    app.command()(command)


def add_commands(app: typer.Typer, found: Iterable[EntryPoint]) -> None:
    """Adds the commands that entry points bring, in the order of their names.

    What cannot be loaded, is no ``typer.Typer``, or has a name that is taken, is left out, and stderr says so: a broken
    package must not take the other commands away.
    """
    taken = names_of(app)
    for entry in sorted(found, key=lambda entry: entry.name):
        try:
            brought = entry.load()
            if not isinstance(brought, typer.Typer):
                raise TypeError(f"{entry.value} is a {type(brought).__name__}, no typer.Typer")
            if twice := sorted(taken & names_of(brought)):
                raise ValueError(f"the name of {', '.join(twice)} is taken")
        except Exception as error:  # noqa: BLE001 (another package's code)
            owner = f" of {entry.dist.name}" if entry.dist else ""
            print(
                f"warning: the commands {entry.name!r}{owner} are left out: {type(error).__name__}: {error}",
                file=sys.stderr,
            )
            continue
        taken |= names_of(brought)
        app.add_typer(brought)


def names_of(app: typer.Typer) -> set[str]:
    """The names of the commands and groups of commands at an app's top."""
    own = {
        one.name or get_command_name(one.callback.__name__) for one in app.registered_commands if one.callback
    }
    for group in app.registered_groups:
        nested = group.typer_instance
        name = group.name or (nested and nested.info.name)
        own |= {name} if isinstance(name, str) else names_of(nested) if nested else set()
    return own


if not (found := entry_points(group=GROUP)):
    print(
        "warning: the installed everlearn is older than these sources, so most commands are missing: "
        "install it anew (make install-serve, or pip install --editable .)",
        file=sys.stderr,
    )
add_commands(app, found)

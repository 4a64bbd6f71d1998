"""The one program, ``everlearn``. Rooms and libraries load inside the commands, so that help answers at once."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from compress.cli import answers, compare, compress, distill, export_gguf
from continual.cli.jobs import jobs, worker
from continual.cli.replay import replay
from everlearn.cli.arguments import Json, complete_ref, open_settings
from everlearn.cli.audit import audit
from everlearn.cli.keys import keys
from everlearn.cli.models import alias, gc, ls, print_added, promote, rm, rollback, show
from everlearn.cli.usage import usage
from everlearn.errors import EverlearnError
from everlearn.privacy import keep_private
from serve.cli_ps import ps
from serve.cli_trials import canary, shadow
from train.cli import train

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


def main() -> None:
    """Entry point."""
    keep_private()
    app()


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(help="A catalogue name, a folder, a .gguf file, or hf:ORG/NAME[@REVISION].")
    ],
    name: Annotated[str | None, typer.Option(help="What to call the model here.")] = None,
    as_json: Json = False,
) -> None:
    """Bring a model in as a new version."""
    from everlearn.importing.sources import import_model
    from everlearn.progress import shown

    with shown() as progress:
        version = import_model(open_settings(), source, name=name, progress=progress)
    print_added(version, as_json)
    if name is None and version.version > 1:
        print(
            f"note: {version.model} was there already, and this is its version {version.version}; "
            "--name gives another name",
            file=sys.stderr,
        )


app.command()(compress)
app.command()(distill)
app.command()(answers)
app.command()(compare)
app.command("gguf")(export_gguf)


@app.command()
def serve(
    refs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL[@VERSION]]…", help="Default: every champion.", autocompletion=complete_ref
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", min=0, max=65535)] = None,
    engine: Annotated[
        Literal["auto", "onnx", "vllm"] | None,
        typer.Option(help="What serves a model's tensors; auto compresses them to ONNX."),
    ] = None,
) -> None:
    """Serve models to any OpenAI client."""
    from everlearn.logs import configure_logging
    from serve.supervisor.supervisor import serve as serve_models

    settings = open_settings()
    configure_logging(settings.log_level)
    given = {"host": host, "port": port, "engine": engine}
    door = settings.serve.model_copy(update={key: value for key, value in given.items() if value is not None})
    serve_models(settings.model_copy(update={"serve": door}), refs or [])


for command in (train, ls, show, rm, gc, promote, rollback, canary, shadow, alias, ps, audit, usage):
    app.command()(command)


@app.command()
def config(as_json: Json = False) -> None:
    """Show every setting, and where its value came from."""
    from everlearn.printing import print_json, print_table
    from everlearn.settings import flatten, origins, without_password

    settings = open_settings()
    origin = origins(settings)
    values = {key: without_password(value) for key, value in flatten(settings.model_dump(mode="json"))}
    if as_json:
        print_json({key: {"value": value, "origin": origin[key]} for key, value in values.items()})
    else:
        shown = {key: "" if value is None else value for key, value in values.items()}
        print_table(
            ["SETTING", "VALUE", "ORIGIN"], [(key, value, origin[key]) for key, value in shown.items()]
        )


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check this machine and this installation; exits with 1 where something will not work."""
    from everlearn.doctor import examine
    from everlearn.printing import print_json, print_table

    findings = examine(open_settings())
    if as_json:
        print_json([finding.__dict__ for finding in findings])
    else:
        print_table(["", "CHECK", "FOUND"], [(one.verdict, one.check, one.found) for one in findings])
    if any(finding.verdict == "bad" for finding in findings):
        raise typer.Exit(1)


@app.command()
def version(as_json: Json = False) -> None:
    """Print everlearn's version."""
    from everlearn import __version__
    from everlearn.printing import print_json

    print_json({"everlearn": __version__}) if as_json else print(__version__)


app.add_typer(keys)
app.add_typer(jobs)
app.add_typer(replay)
app.command()(worker)

"""The one program, ``everlearn``. Rooms and libraries load inside the commands, so that help answers at once."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from everlearn.errors import EverlearnError, InvalidInput

if TYPE_CHECKING:
    from everlearn.registry import Model, Registry, Version
    from everlearn.settings import Settings

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
            code, message = 1, f"{error.filename or 'input/output'}: {error.strerror or error}"
        except KeyboardInterrupt:
            code, message = 130, "interrupted"
        except (typer.Exit, typer.Abort, typer.TyperException):
            raise
        except Exception as error:  # noqa: BLE001 (the last resort of a program)
            code, message = 70, f"{type(error).__name__}: {error} (EVERLEARN_DEBUG=1 shows where)"
        from everlearn.printing import print_error

        print_error(message)
        raise typer.Exit(code)


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
    app()


def complete_ref(incomplete: str) -> list[str]:
    """Names for the shell's completion."""
    registry = _registry(_settings())
    names = [model.name for model in registry.list()]
    refs = (
        [version.ref for model in registry.list() for version in model.versions] if "@" in incomplete else []
    )
    return [name for name in (*names, *refs) if name.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Ref = Annotated[
    str,
    typer.Argument(
        metavar="MODEL[@VERSION]", help="name, name@3 or name@champion", autocompletion=complete_ref
    ),
]
Name = Annotated[str, typer.Argument(metavar="MODEL", autocompletion=complete_ref)]


# Models --------------------------------------------------------------------------------------------------------


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(help="A catalogue name, a folder, a .gguf file, or hf:ORG/NAME[@REVISION].")
    ],
    name: Annotated[str | None, typer.Option(help="What to call the model here.")] = None,
    as_json: Json = False,
) -> None:
    """Bring a model in as a new version."""
    from everlearn.progress import shown
    from everlearn.sources import import_model

    with shown() as progress:
        version = import_model(_settings(), source, name=name, progress=progress)
    _print_added(version, as_json)


@app.command()
def compress(
    ref: Ref,
    to: Annotated[
        Literal["int4-onnx", "int8-onnx", "fp32-onnx"], typer.Option(help="What to make of it.")
    ] = "int4-onnx",
    as_json: Json = False,
) -> None:
    """Make a smaller version of a model, measured against the original."""
    from compress.export import export_onnx
    from everlearn.progress import shown

    with shown() as progress:
        version = export_onnx(_settings(), ref, to, progress)
    _print_added(version, as_json)


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
) -> None:
    """Serve models to any OpenAI client."""
    from everlearn.logs import configure_logging
    from serve.supervisor import serve as serve_models

    settings = _settings()
    configure_logging(settings.log_level)
    chosen = {key: value for key, value in {"host": host, "port": port}.items() if value is not None}
    door = settings.serve.model_copy(update=chosen)
    serve_models(settings.model_copy(update={"serve": door}), refs or [])


@app.command()
def ls(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", autocompletion=complete_ref)] = None,
    as_json: Json = False,
) -> None:
    """List models and their versions."""
    from everlearn.printing import moment, print_json, print_table, size

    registry = _registry(_settings())
    models = [registry.model(model)] if model else registry.list()
    if as_json:
        print_json([describe(version, one) for one in models for version in one.versions])
        return
    rows = [
        (version.ref, version.format, version.task, size(version.manifest.size_bytes), aliases(one, version),
         moment(version.created_at))
        for one in models for version in one.versions
    ]  # fmt: skip
    if rows:
        print_table(["MODEL", "FORMAT", "TASK", "-SIZE", "ALIASES", "ADDED"], rows)
    else:
        print("No models yet. `everlearn import smollm2` brings one.", file=sys.stderr)


@app.command()
def show(
    ref: Ref,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte again first.")] = False,
    as_json: Json = False,
) -> None:
    """Show one version: what it is, where it lies, what made it."""
    from everlearn.printing import moment, print_json, print_table, size

    registry = _registry(_settings())
    version = registry.resolve(ref)
    if verify:
        registry.verify(version)
    line = registry.lineage(version.ref)
    model = registry.model(version.model)
    path = registry.path(version)
    if as_json:
        lineage = [parent.ref for parent in line]
        print_json(describe(version, model) | {"path": str(path), "lineage": lineage})
        return
    manifest = version.manifest
    parameters = f"{manifest.parameters:,}" if manifest.parameters is not None else "unknown"
    facts = [("aliases", aliases(model, version)), ("format", version.format), ("task", version.task)]
    facts += [("architecture", manifest.architecture), ("parameters", parameters)]
    facts += [("size", size(manifest.size_bytes)), ("added", moment(version.created_at))]
    facts += [
        ("lineage", " ← ".join(parent.ref for parent in line)),
        ("digest", version.digest),
        ("path", path),
    ]
    facts += [(f"metrics.{key}", value) for key, value in manifest.metrics.items()]
    facts += [(f"recipe.{key}", value) for key, value in manifest.recipe.items()]
    print_table([version.ref, ""], facts)


@app.command()
def rm(
    ref: Ref,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a whole model goes.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a version; or, by its bare name, a model with all its versions."""
    from everlearn.printing import print_json

    registry = _registry(_settings())
    if "@" not in ref and not yes:
        versions = registry.versions(ref)
        if not sys.stdin.isatty():
            raise InvalidInput(
                f"{ref} has {len(versions)} versions; remove one as {versions[0].ref}, or add --yes"
            )
        typer.confirm(f"Remove {ref} and its {len(versions)} versions?", abort=True, err=True)
    removed = [version.ref for version in registry.delete(ref)]
    registry.collect()
    print_json(removed) if as_json else print("\n".join(f"removed {one}" for one in removed))


@app.command()
def gc(as_json: Json = False) -> None:
    """Free the disk space of what no version needs."""
    from everlearn.printing import print_json

    done = _registry(_settings()).collect()
    if as_json:
        print_json({"bundles": list(done.bundles), "staging": done.staging})
    else:
        print(f"removed {len(done.bundles)} bundles and {done.staging} unfinished folders")


@app.command()
def promote(ref: Ref, as_json: Json = False) -> None:
    """Make a version the champion of its model; the former one becomes `previous`."""
    registry = _registry(_settings())
    _print_aliases(registry, registry.promote(ref).model, as_json)


@app.command()
def rollback(model: Name, as_json: Json = False) -> None:
    """Undo the last promotion: champion and `previous` change places."""
    registry = _registry(_settings())
    _print_aliases(registry, registry.rollback(model).model, as_json)


@app.command()
def alias(
    ref: Ref,
    name: Annotated[str, typer.Argument(metavar="ALIAS")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the alias away from the model.")] = False,
    as_json: Json = False,
) -> None:
    """Give a version a name that can move later."""
    registry = _registry(_settings())
    version = registry.resolve(ref)
    if remove:
        registry.remove_alias(version.model, name)
    else:
        registry.set_alias(version.model, name, version.version)
    _print_aliases(registry, version.model, as_json)


# The installation ----------------------------------------------------------------------------------------------


@app.command()
def config(as_json: Json = False) -> None:
    """Show every setting, and where its value came from."""
    from everlearn.printing import print_json, print_table
    from everlearn.settings import flatten, origins, without_password

    settings = _settings()
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

    findings = examine(_settings())
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


def _settings() -> Settings:
    """Loads settings, and quiets logs to what a person at a prompt needs, unless a level was asked for."""
    from everlearn.logs import configure_logging
    from everlearn.settings import load_settings, origins

    settings = load_settings()
    asked = origins(settings)["log_level"] != "default"
    configure_logging(settings.log_level if asked else "warning")
    return settings


def _registry(settings: Settings) -> Registry:
    from everlearn.registry import Registry

    return Registry(settings)


def aliases(model: Model, version: Version) -> str:
    return " ".join(name for name, number in model.aliases.items() if number == version.version)


def describe(version: Version, model: Model) -> dict[str, Any]:
    """A version as the JSON listings give it."""
    return {
        "ref": version.ref,
        "model": version.model,
        "version": version.version,
        "aliases": aliases(model, version).split(),
        "size_bytes": version.manifest.size_bytes,
        "added_at": version.created_at,
        "bundle": version.manifest.model_dump(mode="json"),
    }


def _print_added(version: Version, as_json: bool) -> None:
    from everlearn.printing import print_json, size

    if as_json:
        model = _registry(_settings()).model(version.model)
        print_json(describe(version, model))
        return
    metrics = "".join(
        f", {key} {value}" for key, value in version.manifest.metrics.items() if "perplexity" in key
    )
    print(f"{version.ref}: {version.format}, {size(version.manifest.size_bytes)}{metrics}")


def _print_aliases(registry: Registry, model: str, as_json: bool) -> None:
    from everlearn.printing import print_json

    found = registry.aliases(model)
    print_json(found) if as_json else print(
        "\n".join(f"{model}@{name} = {model}@{at}" for name, at in found.items())
    )


def _add_groups() -> None:
    from everlearn.cli_keys import keys

    app.add_typer(keys)


_add_groups()

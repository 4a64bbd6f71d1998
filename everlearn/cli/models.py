"""The commands of ``everlearn`` that list, show, name and remove versions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everlearn.cli.arguments import Json, Name, Ref, complete_ref, open_registry, open_settings
from everlearn.errors import InvalidInput

if TYPE_CHECKING:
    from everlearn.registry.records import Model, Version
    from everlearn.registry.registry import Registry


def ls(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", autocompletion=complete_ref)] = None,
    as_json: Json = False,
) -> None:
    """List models and their versions."""
    from everlearn.printing import moment, print_json, print_table, size

    registry = open_registry(open_settings())
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


def show(
    ref: Ref,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte again first.")] = False,
    as_json: Json = False,
) -> None:
    """Show one version: what it is, where it lies, what made it."""
    from everlearn.printing import moment, print_json, print_table, size
    from everlearn.settings import flatten

    registry = open_registry(open_settings())
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
    facts: list[tuple[str, object]] = [
        ("aliases", aliases(model, version)),
        ("format", version.format),
        ("task", version.task),
    ]
    facts += [("architecture", manifest.architecture), ("parameters", parameters)]
    facts += [("size", size(manifest.size_bytes)), ("added", moment(version.created_at))]
    facts += [
        ("lineage", " ← ".join(parent.ref for parent in line)),
        ("digest", version.digest),
        ("path", path),
    ]
    if version.task == "generate":
        facts += stops_at(path)
    facts += flatten(manifest.metrics, "metrics.")
    facts += flatten(manifest.recipe, "recipe.")
    print_table([version.ref, ""], facts)


def stops_at(directory: Path) -> list[tuple[str, object]]:
    """What ends an answer, by name; and what there is to know about it."""
    from everlearn.chat.stops import stops_of

    stops = stops_of(directory)
    names = {id: name for name, id in stops.names.items()}
    rows: list[tuple[str, object]] = [("stops at", " ".join(names.get(id, str(id)) for id in stops.ids))]
    return [*rows, ("note", stops.note)] if stops.note else rows


def rm(
    ref: Ref,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a whole model goes.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a version; or, by its bare name, a model with all its versions."""
    from everlearn.printing import print_json

    registry = open_registry(open_settings())
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


def gc(as_json: Json = False) -> None:
    """Free the disk space of what no version needs."""
    from everlearn.printing import print_json

    done = open_registry(open_settings()).collect()
    if as_json:
        print_json({"bundles": list(done.bundles), "staging": done.staging})
    else:
        print(f"removed {len(done.bundles)} bundles and {done.staging} unfinished folders")


def promote(ref: Ref, as_json: Json = False) -> None:
    """Make a version the champion of its model; the former one becomes `previous`."""
    registry = open_registry(open_settings())
    print_aliases(registry, registry.promote(ref).model, as_json)


def rollback(model: Name, as_json: Json = False) -> None:
    """Undo the last promotion: champion and `previous` change places."""
    registry = open_registry(open_settings())
    print_aliases(registry, registry.rollback(model).model, as_json)


def alias(
    ref: Ref,
    name: Annotated[str, typer.Argument(metavar="ALIAS")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the alias away from the model.")] = False,
    as_json: Json = False,
) -> None:
    """Give a version a name that can move later."""
    registry = open_registry(open_settings())
    version = registry.resolve(ref)
    if remove:
        registry.remove_alias(version.model, name)
    else:
        registry.set_alias(version.model, name, version.version)
    print_aliases(registry, version.model, as_json)


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


def print_added(version: Version, as_json: bool) -> None:
    from everlearn.printing import print_json, size

    if as_json:
        model = open_registry(open_settings()).model(version.model)
        print_json(describe(version, model))
        return
    print(f"{version.ref}: {version.format}, {size(version.manifest.size_bytes)}{price(version)}")
    if version.task == "generate":
        from everlearn.chat.stops import stops_of

        if note := stops_of(open_registry(open_settings()).path(version)).note:
            print(f"note: {note}", file=sys.stderr)


def price(version: Version) -> str:
    """What making the version cost in quality and time, where that was measured."""
    shown = {
        key: value
        for key, value in version.manifest.metrics.items()
        if "perplexity" in key or "cosine" in key or key == "seconds"
    }
    return "".join(f", {key.replace('_', ' ')} {value}" for key, value in shown.items())


def print_aliases(registry: Registry, model: str, as_json: bool) -> None:
    from everlearn.printing import print_json

    found = registry.aliases(model)
    print_json(found) if as_json else print(
        "\n".join(f"{model}@{name} = {model}@{at}" for name, at in found.items())
    )

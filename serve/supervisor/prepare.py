"""From what the user named to a version that an engine can serve: imported and compressed where it has to be.

The work runs in child processes, so that the supervisor itself never loads torch.
"""

from collections.abc import Awaitable, Callable, Sequence

from everlearn.bundles.reference import parse_reference
from everlearn.errors import Conflict, EverlearnError, InvalidInput, NotFound, Unsupported
from everlearn.importing.catalogue import CATALOGUE
from everlearn.registry.registry import Registry, Version
from serve.engines.programs import BY_DEFAULT, compresses_for, named_engine, program

Run = Callable[[Sequence[str]], Awaitable[None]]
"""Runs `everlearn ARGUMENTS…` to its end, showing its progress; raises when it fails."""


def refuse_twice(refs: Sequence[str]) -> None:
    """Raises Conflict where a model is named twice, InvalidInput where a name is none."""
    models = [parse_reference(ref).model for ref in refs]
    for model in models:
        if models.count(model) > 1:
            raise Conflict(f"{model} is named twice; a server offers one version of a model", param="model")


def champions(registry: Registry) -> list[str]:
    """What `everlearn serve` without a name serves: each model whose champion needs no work before.

    One that its engine will refuse is among them, so that this is told.
    """
    found = [
        model.name
        for model in registry.list()
        for version in model.versions
        if version.version == model.aliases.get("champion") and _serves_or_tells(registry, version)
    ]
    if not found:
        raise InvalidInput("there is no model to serve yet; name one, for example: everlearn serve smollm2")
    return found


def _serves_or_tells(registry: Registry, version: Version) -> bool:
    try:
        return as_it_is(registry, version) is not None
    except Unsupported:
        return True


def is_imported(registry: Registry, ref: str) -> bool:
    """Whether finding out what `ref` names takes no work, be it that there is no such thing."""
    try:
        registry.resolve(ref)
    except EverlearnError as error:
        return not (isinstance(error, NotFound) and ref in CATALOGUE)
    return True


async def find(registry: Registry, ref: str, run: Run) -> Version:
    """The version that `ref` names, imported from the catalogue where it has to be. Raises EverlearnError."""
    try:
        return registry.resolve(ref)
    except NotFound as unknown:
        if ref not in CATALOGUE:
            names = ", ".join(sorted(CATALOGUE))
            raise NotFound(f"{unknown.message} The catalogue has: {names}.", param="model") from None
    await run(["import", ref])
    return registry.resolve(ref)


async def servable(registry: Registry, ref: str, run: Run) -> Version:
    """The version behind `ref`, or its compressed form, made now if there is none."""
    version = await find(registry, ref, run)
    if ready := as_it_is(registry, version):
        return ready
    if child := compressed(registry, version):
        return child
    recipe = compresses_for(version, registry.settings).compress_to[version.task]
    await run(["compress", version.ref, "--to", recipe])
    if child := compressed(registry, version):
        return child
    raise NotFound(f"compressing {version.ref} left no servable version behind", param="model")


def as_it_is(registry: Registry, version: Version) -> Version | None:
    """What serves for `version` without work: itself, or what it was compressed from, where the settings name an engine
    that nothing is compressed for.

    Raises Unsupported where the settings name an engine that cannot serve it, or its engine is not installed.
    """
    settings = registry.settings
    named = named_engine(version, settings)
    if named and not named.compress_to:
        for ancestor in registry.lineage(version.ref):
            if ancestor.format in named.formats:
                program(ancestor, settings)
                return ancestor
        raise Unsupported(
            f"{version.ref} was not made from a version that {named.title} reads", param="model"
        )
    if version.format in BY_DEFAULT:
        program(version, settings)
        return version
    return None


def compressed(registry: Registry, parent: Version) -> Version | None:
    """The newest version that was made from `parent` for the engine that it is compressed for."""
    engine = compresses_for(parent, registry.settings)
    made = [
        version
        for version in registry.versions(parent.model)
        if version.parent_digest == parent.digest and version.format in engine.formats
    ]
    return max(made, key=lambda version: version.version, default=None)

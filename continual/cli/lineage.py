"""``everlearn lineage``: where a version comes from, and where a file went."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everlearn.cli.arguments import Json, complete_ref, open_registry, open_settings
from everlearn.errors import InvalidInput

if TYPE_CHECKING:
    from continual.lineage import Lesson, Origin, Trace
    from everlearn.registry.registry import Registry


def lineage(
    ref: Annotated[
        str | None, typer.Argument(metavar="[MODEL[@VERSION]]", autocompletion=complete_ref)
    ] = None,
    learnt_from: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="A file of this machine, the id of an uploaded one, or a SHA-256: where it went.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell what a version was made of, job by job; or which versions learnt from a file."""
    from continual.lineage import lineage, trace
    from everlearn.printing import print_json

    if (ref is None) == (learnt_from is None):
        raise InvalidInput("name a version, or a file by --learnt-from; one of the two")
    registry = open_registry(open_settings())
    if ref is not None:
        line = lineage(registry, ref)
        if as_json:
            print_json([dataclasses.asdict(one) for one in line])
            return
        print("\n\n".join("\n".join(_origin(one)) for one in line))
        return
    found = trace(registry, _sha256(registry, str(learnt_from)))
    print_json(dataclasses.asdict(found)) if as_json else _show(found)


def _sha256(registry: Registry, named: str) -> str:
    """Of a file's bytes, whichever way it is named. Raises NotFound, InvalidInput."""
    from continual.lineage import hash_of
    from everlearn.bundles.bundle import file_entry

    if re.fullmatch(r"[0-9a-f]{64}", named):
        return named
    if (path := Path(named)).is_file():
        return file_entry(path).sha256
    if not re.fullmatch(r"file-[0-9a-f]+", named):
        raise InvalidInput(f"{named} is no file of this machine, no id of an uploaded one and no SHA-256")
    return hash_of(registry, named)


def _origin(one: Origin) -> Iterator[str]:
    from everlearn.printing import moment, size

    names = f" ({', '.join(one.aliases)})" if one.aliases else ""
    yield f"{one.ref}{names}: {one.format}, {size(one.size_bytes)}, {moment(one.created_at)}"
    yield f"  {one.made_by}{_told(one)}"
    if one.lesson:
        yield from (f"  {line}" for line in _lesson(one.lesson))


def _told(one: Origin) -> str:
    """What of the recipe tells most."""
    made: dict[str, Any] = one.recipe.get(one.made_by, {})
    if one.made_by == "import":
        named = [made.get("wheel") or made.get("source") or "", made.get("file") or ""]
        told = " ".join(filter(None, named)) + (f" (sha256 {made['sha256']})" if "sha256" in made else "")
    elif one.made_by == "compress":
        export = one.recipe["export"]
        told = " ".join(str(export[key]) for key in ("to", "weights") if export.get(key))
    elif one.made_by == "train":
        data: dict[str, list[str]] = made.get("data") or {}
        told = ", ".join(data.get("train") or [])
    else:
        told = ""
    return f": {told}" if told else ""


def _lesson(lesson: Lesson) -> Iterator[str]:
    from everlearn.printing import moment

    by = f", by the key {lesson.key!r}" if lesson.key else ""
    ended = f", {moment(lesson.finished_at)}" if lesson.finished_at else ""
    yield f"{lesson.job} ({lesson.state}): {lesson.domain or 'no domain'}{by}{ended}"
    for file in lesson.files:
        known = f"{file.name} (sha256 {file.sha256})" if file.sha256 else "nothing is known of it any more"
        yield f"  {file.role} file {file.id}{', deleted' if file.deleted else ''}: {known}"
    if lesson.trained_tokens is not None:
        yield f"  trained on {lesson.trained_tokens:,} tokens"
    for name, gate in lesson.gates.items():
        worst = max((one.get("forgetting") or 0.0 for one in gate["kept"]), default=None)
        kept = "" if worst is None else f", forgot at most {worst:.4f} of {len(gate['kept'])} domains"
        passed = "passed" if gate["passed"] else "refused"
        yield f"  gate as {name}: {passed}, gained {gate['gain']['mean']:.4f} nats per token{kept}"


def _show(found: Trace) -> None:
    from everlearn.printing import print_table

    for lesson in found.lessons:
        print("\n".join(_lesson(lesson)))
    if found.lessons:
        print()
    rows = [(one.ref, " ".join(one.aliases), one.why) for one in found.versions]
    print_table(["VERSION", "KNOWN AS", "WHY"], rows) if rows else print("No version learnt from it.")
    for model, count in found.replayed.items():
        print(
            f"\nThe replay buffer of {model} holds {count} examples of these jobs: everlearn replay ls {model}"
        )

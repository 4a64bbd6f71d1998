"""``everlearn replay``: what continual training keeps of earlier texts, shown and deleted at the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everlearn.cli.arguments import Json, Name, open_registry, open_settings
from everlearn.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from continual.learn.replay import ReplayExample
    from everlearn.registry.registry import Registry

SHOWN_CHARS = 70
SHORTEST_PREFIX = 8

replay = typer.Typer(
    name="replay",
    help="See and delete what is kept of the texts that models were taught.",
    no_args_is_help=True,
)


@replay.command()
def show(model: Name, as_json: Json = False) -> None:
    """Show how much is kept of each text, to train on again and to measure on."""
    from continual.learn.replay import sizes
    from everlearn.printing import print_json, print_table
    from everlearn.registry.database import read

    registry = open_registry(open_settings())
    registry.resolve(model)
    with read(registry.database) as connection:
        found = sizes(connection, model)
    if as_json:
        print_json(found)
        return
    rows = [(domain, kept.get("train", 0), kept.get("held", 0)) for domain, kept in found.items()]
    print_table(["DOMAIN", "-TRAIN TOKENS", "-HELD TOKENS"], rows)


@replay.command()
def ls(
    model: Name,
    domain: Annotated[str | None, typer.Option(help="Of this text alone.")] = None,
    contains: Annotated[str, typer.Option(help="Only examples that hold these words.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    as_json: Json = False,
) -> None:
    """List examples as the model reads them, each with the hash that `everlearn replay rm` takes."""
    from itertools import islice

    from everlearn.printing import print_json, print_table

    registry = open_registry(open_settings())
    decode = _decoder(registry, model)
    matching = (
        (split, kept, text)
        for split, kept in _kept(registry, model, domain)
        if contains in (text := decode(kept))
    )
    found = list(islice(matching, limit))
    if as_json:
        print_json([
            {"sha256": kept.sha256, "domain": kept.domain, "split": split, "tokens": len(kept.example), "text": text}
            for split, kept, text in found
        ])  # fmt: skip
        return
    rows = [
        (kept.sha256[:12], kept.domain, split, len(kept.example), " ".join(text.split())[:SHOWN_CHARS])
        for split, kept, text in found
    ]
    print_table(["SHA256", "DOMAIN", "SPLIT", "-TOKENS", "TEXT"], rows)


@replay.command()
def rm(
    model: Name,
    sha256: Annotated[
        list[str], typer.Argument(metavar="SHA256…", help="As `everlearn replay ls` shows it.")
    ],
    as_json: Json = False,
) -> None:
    """Delete examples for good: they do not come back with a later file. What models learned of them stays."""
    from continual.learn.replay import delete_example
    from everlearn.printing import print_json
    from everlearn.registry.database import write

    registry = open_registry(open_settings())
    chosen = [_whole(registry, model, prefix) for prefix in sha256]
    with write(registry.database) as connection:
        removed = sum(delete_example(connection, model, one) for one in chosen)
    print_json({"deleted": chosen}) if as_json else print(f"deleted {removed} of {model}'s examples")


@replay.command()
def best(model: Name, as_json: Json = False) -> None:
    """Show how good the champion's line ever was on each text: what the gate's budget is counted from."""
    from continual.learn.best import recall, summary
    from everlearn.printing import print_json, print_table
    from everlearn.registry.database import read

    registry = open_registry(open_settings())
    kinds = {"served": registry.resolve(model), "float": registry.weights(model)}
    if kinds["served"].digest == kinds["float"].digest:
        del kinds["served"]
    with read(registry.database) as connection:
        found = {name: summary(recall(connection, model, version.digest)) for name, version in kinds.items()}
    if as_json:
        print_json(found)
        return
    rows = [
        (domain, kind, f"{its['nats']:.4f}", its["version"], its["examples"])
        for kind, domains in found.items()
        for domain, its in domains.items()
    ]
    if rows:
        print_table(["DOMAIN", "AS", "-NATS PER TOKEN", "OF", "-EXAMPLES"], rows)
    else:
        print(f"Nothing is remembered of {model}'s champion: its next job begins with what it measures.")


@replay.command()
def accept(
    model: Name,
    domain: Annotated[
        list[str], typer.Argument(metavar="DOMAIN…", help="As `everlearn replay best` shows it.")
    ],
    as_json: Json = False,
) -> None:
    """Accept what a model has lost of texts: their best begins anew with what the champion scores now."""
    from continual.learn.best import domains_of, reset
    from everlearn.printing import print_json
    from everlearn.registry.database import write

    registry = open_registry(open_settings())
    registry.resolve(model)
    with write(registry.database) as connection:
        known = domains_of(connection, model)
        if unknown := [one for one in domain if one not in known]:
            there = f"there is {', '.join(known)}" if known else "nothing is remembered"
            raise NotFound(f"no best of {', '.join(unknown)} is remembered for {model}; {there}")
        examples = reset(connection, model, domain)
    if as_json:
        print_json({"accepted": domain, "examples": examples})
    else:
        print(f"{model}'s next job begins anew with the best of {', '.join(domain)}")


def _kept(registry: Registry, model: str, domain: str | None) -> Iterator[tuple[str, ReplayExample]]:
    from continual.learn.replay import Split, read_buffer
    from everlearn.registry.database import read

    splits: tuple[Split, ...] = ("train", "held")
    for split in splits:
        with read(registry.database) as connection:
            reading = read_buffer(connection, model, split, domain)
        yield from ((split, kept) for kept in reading.kept)


def _decoder(registry: Registry, model: str) -> Callable[[ReplayExample], str]:
    """Examples are kept as tokens: the model's own tokenizer turns them into text."""
    import tokenizers

    library: Any = tokenizers
    file = registry.path(registry.resolve(model)) / "tokenizer.json"
    tokenizer = library.Tokenizer.from_file(str(file))

    def decode(kept: ReplayExample) -> str:
        return tokenizer.decode(kept.example.ids.tolist(), skip_special_tokens=False)

    return decode


def _whole(registry: Registry, model: str, prefix: str) -> str:
    """The one hash that begins so. Raises NotFound, InvalidInput where several do."""
    from continual.learn.replay import hashes
    from everlearn.registry.database import read

    if len(prefix) < SHORTEST_PREFIX:
        raise InvalidInput(f"{prefix!r} is too short: at least {SHORTEST_PREFIX} characters name an example")
    with read(registry.database) as connection:
        known = hashes(connection, model, "train") | hashes(connection, model, "held")
    found = [one for one in known if one.startswith(prefix)]
    if len(found) != 1:
        problem = (
            f"{len(found)} examples of {model} begin with {prefix}" if found else f"{model} keeps no {prefix}"
        )
        raise (InvalidInput if found else NotFound)(problem)
    return found[0]

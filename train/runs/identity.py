"""A run's identity: its recipe and what its files hold, never where they lie or what they are called.

An edited data file, a file more in a folder, other ``held`` files or another version of the base are another run;
the same bytes under another path are the same one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from everlearn.bundles.bundle import MANIFEST, file_entry
from everlearn.errors import Conflict, InvalidInput, NotFound
from everlearn.progress import Progress, silent
from train.recipe import TrainRecipe, recipe_diff
from train.recipe_data import PlainData

Contents = dict[str, list[list[str]]]
"""By recipe key, the name and sha256 of each file, in the order of reading."""

BLOCK_BYTES = 4 * 1024**2
TOLD_FROM_BYTES = 512 * 1024**2
"""About a second of reading: less is not announced."""


def contents_of(recipe: TrainRecipe, progress: Progress = silent) -> Contents:
    """Reads every byte that the recipe names. Raises NotFound, InvalidInput, and Corrupt for a damaged store."""
    kept = {"keep.store": recipe.keep.store} if recipe.keep else {}
    return (
        contents_of_data(recipe.data, progress)
        | _stores(kept, progress)
        | _images(recipe, progress)
        | _tokenizer(recipe)
    )


def contents_of_data(data: PlainData, progress: Progress = silent) -> Contents:
    """Those of a recipe's ``data``. Raises as :func:`contents_of`."""
    from train.data.reading.sources import given_sources, list_sources

    contents: Contents = {}
    if data.files:
        sources = list_sources(data.files, data.held, progress)
        hashed = _hash([source.path for source in sources], progress)
        components = list(data.files) if isinstance(data.files, Mapping) else []
        contents |= {f"data.mixture.{name}": [] for name in components} or {"data.train": []}
        contents["data.held"] = []
        for source, sha256 in zip(sources, hashed, strict=True):
            key = f"mixture.{source.component}" if source.component else "held" if source.held else "train"
            contents[f"data.{key}"].append([source.name, sha256])
        for key, given in given_sources(data).items():
            hashed = _hash([source.path for source in given], progress)
            contents[f"data.{key}"] = [
                [source.name, sha256] for source, sha256 in zip(given, hashed, strict=True)
            ]
        for key, model in data.models.items():
            from train.data.collecting.second_pass import model_sha256

            contents[f"data.{key}"] = [[model.name, model_sha256(model, f"data.{key}.model")]]
    return contents | _stores({"data.store": data.store, "data.held_store": data.held_store}, progress)


def _images(recipe: TrainRecipe, progress: Progress) -> Contents:
    """Of each file with pictures, the digest of all that it holds or names."""
    from train.data.collecting.collect import images_sha256
    from train.data.reading.sources import list_sources

    options = recipe.data_options
    if not options.image_side or not recipe.data.files:
        return {}
    found: list[list[str]] = []
    for source in list_sources(recipe.data.files, recipe.data.held):
        progress(f"checking the pictures of {source.name}", None)
        found.append([source.name, images_sha256(source, options) or ""])
    return {"data.images": found}


def _tokenizer(recipe: TrainRecipe) -> Contents:
    folder = recipe.architecture.taken_tokenizer if recipe.architecture else None
    if folder is None:
        return {}
    files = [folder / "tokenizer.json", folder / "tokenizer_config.json"]
    if not files[0].is_file():
        raise NotFound(
            f"{folder} is no folder with a tokenizer: it has no tokenizer.json",
            param="architecture.tokenizer.of",
        )
    digest = " ".join(file_entry(file).sha256 for file in files if file.is_file())
    return {"architecture.tokenizer": [[folder.name, digest]]}


def contents_read(contents: Contents) -> list[list[str]]:
    """Of each kind of file, what they hold and how they are read; not what they are called."""
    return [_read_as(files) for _, files in sorted(contents.items())]


def _read_as(files: Sequence[Sequence[str]]) -> list[str]:
    """A suffix decides how a file is read: the same bytes as .txt and as .jsonl are two things to learn."""
    from train.data.reading.read import layout_named

    return [f"{layout_named(name) or ''} {sha256}" for name, sha256 in files]


def base_digest(base: Path) -> str:
    """A bundle's digest; of another folder, its configuration's and weights' own."""
    if (base / MANIFEST).is_file():
        return json.loads((base / MANIFEST).read_bytes())["digest"]
    files = [file for file in (base / "config.json",) if file.is_file()] + sorted(base.glob("*.safetensors"))
    return " ".join(file_entry(file).sha256 for file in files)


def run_diff(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What tells two runs apart, a line each; both as run.json holds them. Empty where they are one run."""
    lines = recipe_diff(before["recipe"], now["recipe"])
    lines += _contents_diff(before.get("contents") or {}, now["contents"])
    old, new = before.get("base") or {}, now.get("base") or {}
    if old.get("digest") != new.get("digest"):
        lines.append(f"base: {_base(old)} → {_base(new)}")
    return lines


def refuse_changed(contents: Contents, read: Sequence[str]) -> None:
    """Raises Conflict where a file that was ``read`` (sha256 of each) is not one of ``contents``."""
    known = {sha256 for files in contents.values() for _, sha256 in files}
    if not known.issuperset(read):
        raise Conflict("a data file was changed while it was read: start the run again", param="data.train")


def _stores(stores: Mapping[str, Path | None], progress: Progress) -> Contents:
    from train.data.store import open_store

    contents: Contents = {}
    for key, store in stores.items():
        if store:
            progress(f"checking {store.name}", None)
            contents[key] = [[store.name, open_store(store, verify=True).card.sha256]]
    return contents


def _base(said: Mapping[str, Any]) -> str:
    if not said:
        return "none"
    return f"{said['ref'] or 'a folder'} ({said['digest'][:12]}…)"


def _contents_diff(before: Contents, now: Contents) -> list[str]:
    lines: list[str] = []
    for key in before | now:
        old, new = before.get(key, []), now.get(key, [])
        if _read_as(old) == _read_as(new):
            continue
        was, became = {name: sha256 for name, sha256 in old}, {name: sha256 for name, sha256 in new}
        known = {sha256 for _, sha256 in old}
        found = [f"{name} is gone" for name in was if name not in became]
        found += [
            f"{name} is new" if name not in was else f"{name} was {was[name][:12]}…, is {sha256[:12]}…"
            for name, sha256 in became.items()
            if sha256 not in known
        ]
        lines += [f"{key}: {what}" for what in found or ["the same files in another order or number"]]
    return lines


def _hash(files: Sequence[Path], progress: Progress) -> list[str]:
    """The sha256 of each, read in blocks."""
    for file in files:
        if not file.is_file():
            raise InvalidInput(f"{file} is neither a file nor a folder", param="data.train")
    total, read = sum(file.stat().st_size for file in files), 0
    told = TOLD_FROM_BYTES
    hashed: list[str] = []
    for file in files:
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
                read += len(block)
                if read >= told:
                    progress(
                        f"checking the data: {read / 1e9:.1f} of {total / 1e9:.1f} GB",
                        read / max(total, read),
                    )
                    told = read + max(TOLD_FROM_BYTES, total // 20)
        hashed.append(digest.hexdigest())
    return hashed

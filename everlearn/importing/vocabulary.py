"""Check that a model's tokenizer, special ids and vocabulary agree: each id needs a row of the embedding."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from everlearn.bundles.contents import read_json_object
from everlearn.errors import InvalidInput

SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
IMAGES = {"gemma3_text": frozenset({"<image_soft_token>"})}
"""Tokens that the tokenizer has for a larger sister that sees, by the model type of those that have no row for them."""


def check_vocabulary(directory: Path) -> list[str]:
    """Raises InvalidInput where an id of the tokenizer or the configuration has no row in the embedding.

    Returns those of the tokenizer's tokens that stand for images and have no row: :func:`take_out` is for them.
    """
    config = read_json_object(directory / "config.json")
    vocab = config.get("vocab_size")
    generation = directory / "generation_config.json"
    check_special(config, "config.json", vocab)
    if generation.is_file():
        said = read_json_object(generation)
        check_special(said, generation.name, vocab)
        check_sampling(said, generation.name)
    if type(vocab) is not int:
        return []
    file = directory / "tokenizer.json"
    tokenizer = read_json_object(file)
    beyond = {token: at for token, at in ids(tokenizer) if at >= vocab}
    images = beyond.keys() & IMAGES.get(str(config.get("model_type")), frozenset())
    if beyond.keys() - images:
        token, at = max(beyond.items(), key=lambda one: one[1])
        raise InvalidInput(
            f"the tokenizer has ids up to {at} ({token[:80]!r}), and config.json a vocab_size of {vocab}: "
            f"{len(beyond)} of its tokens have no row in the embedding. Bring the tokenizer that the model was trained "
            "with, or resize its embedding",
            param="vocab_size",
        )
    return sorted(images)


def ids(tokenizer: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Every token of a tokenizer.json with its id, added ones too."""
    model = tokenizer.get("model")
    vocab: Any = cast("dict[str, Any]", model).get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        yield from ((token, at) for token, at in cast("dict[str, Any]", vocab).items() if type(at) is int)
    elif isinstance(vocab, list):
        for at, piece in enumerate(cast("list[Any]", vocab)):
            yield (str(cast("list[Any]", piece)[0]) if isinstance(piece, list) and piece else ""), at
    added: Any = tokenizer.get("added_tokens")
    for one in cast("list[Any]", added) if isinstance(added, list) else ():
        if isinstance(one, dict) and type(at := cast("dict[str, Any]", one).get("id")) is int:
            yield str(cast("dict[str, Any]", one).get("content")), at


def check_special(said: Mapping[str, Any], name: str, vocab: Any) -> None:
    """Raises InvalidInput where an id that starts, ends or fills a text is none of the vocabulary's."""
    for key in SPECIAL:
        value: Any = said.get(key)
        for at in cast("list[Any]", value) if isinstance(value, list) else [value]:
            if at is None or (
                key == "pad_token_id" and at == -1
            ):  # as the first Llama's files say that there is none
                continue
            if type(at) is not int or at < 0 or (type(vocab) is int and at >= vocab):
                of = f"below vocab_size, {vocab}" if type(vocab) is int else "of the vocabulary"
                raise InvalidInput(
                    f"{name}: {key} is {json.dumps(at)[:80]}, and must be an id {of}", param=key
                )


def check_sampling(said: Mapping[str, Any], name: str) -> None:
    """Raises InvalidInput naming a default for sampling that none can be."""
    for key, low, high in (
        ("temperature", 0.0, 100.0),
        ("top_p", 0.0, 1.0),
        ("min_p", 0.0, 1.0),
        ("top_k", 0, 2**31),
        ("repetition_penalty", 1e-6, 1e6),
    ):
        value: Any = said.get(key)
        if value is None or (key == "top_k" and value == -1):  # as vLLM has it: no limit
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise InvalidInput(
                f"{name}: {key} is {json.dumps(value)[:80]}, not a number from {low:g} to {high:g}", param=key
            )


def take_out(directory: Path, tokens: list[str]) -> None:
    """Writes tokenizer.json and tokenizer_config.json without added ``tokens``: text that says them is text."""
    tokenizer = read_json_object(directory / "tokenizer.json")
    tokenizer["added_tokens"] = [one for one in tokenizer["added_tokens"] if one["content"] not in tokens]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    file = directory / "tokenizer_config.json"
    if not file.is_file():
        return
    said = read_json_object(file)
    said["added_tokens_decoder"] = {
        at: one
        for at, one in said.get("added_tokens_decoder", {}).items()
        if one.get("content") not in tokens
    }
    file.write_text(
        json.dumps({key: one for key, one in said.items() if one not in tokens}, ensure_ascii=False)
    )

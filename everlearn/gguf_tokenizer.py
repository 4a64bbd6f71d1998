"""The tokenizer inside a GGUF file, as Hugging Face tokenizer files.

Byte-level BPE is built straight from the vocabulary and the merges, with the pre-tokenizer that
``tokenizer.ggml.pre`` names: transformers' own conversion takes half a minute and drops that name.
"""

# pyright: basic
# tokenizers tells strict rules too little of their types.

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everlearn.errors import InvalidInput

# Token types of the GGUF format.
CONTROL, USER_DEFINED = 3, 4

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# As llama.cpp splits (src/llama-vocab.cpp); None is GPT-2's own pattern, which ByteLevel brings.
PATTERNS: dict[str, str | None] = {
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_WORDS}|\p{{N}}|{_REST}",
}
ONE_DIGIT_A_TOKEN = frozenset({"smollm"})
NORMAL_FORM_C = frozenset({"qwen2"})


def can_build(fields: Mapping[str, Any]) -> bool:
    """Whether :func:`build_tokenizer` knows this file's kind of tokenizer."""
    return (
        fields.get("tokenizer.ggml.model") == "gpt2"
        and fields.get("tokenizer.ggml.pre", "gpt-2") in PATTERNS
        and "tokenizer.ggml.merges" in fields
    )


def build_tokenizer(fields: Mapping[str, Any]) -> Any:
    """A ``tokenizers.Tokenizer`` from GGUF metadata. Raises InvalidInput where ids and merges disagree."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds: list[int] = fields.get("tokenizer.ggml.token_type", [1] * len(tokens))
    merges = [tuple(merge.split(" ", 1)) for merge in fields["tokenizer.ggml.merges"]]
    pre = fields.get("tokenizer.ggml.pre", "gpt-2")
    try:
        tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(tokens)}, merges))
    except Exception as error:  # noqa: BLE001 (tokenizers raises Exception itself)
        raise InvalidInput(f"the tokenizer's merges do not fit its vocabulary: {error}") from None
    steps: list[Any] = []
    if pre in ONE_DIGIT_A_TOKEN:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    pattern = PATTERNS[pre]
    if pattern:
        steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if pre in NORMAL_FORM_C:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    first = _first_token(fields)
    if first is not None:
        name = tokens[first]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[name, "$A"], pair=[name, "$A", name, "$B:1"], special_tokens=[(name, first)]
        )
    return tokenizer


def _first_token(fields: Mapping[str, Any]) -> int | None:
    return fields.get("tokenizer.ggml.bos_token_id") if fields.get("tokenizer.ggml.add_bos_token") else None


def special_tokens(fields: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token``, ``eos_token``, … by the ids of the file, which transformers' conversion gets wrong."""
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    found: dict[str, str] = {}
    for short, long in names.items():
        token_id = fields.get(f"tokenizer.ggml.{long}_token_id")
        if token_id is None:
            continue
        if not 0 <= token_id < len(tokens):
            raise InvalidInput(f"the {short} token's id {token_id} is outside the vocabulary")
        found[f"{short}_token"] = tokens[token_id]
    return found


def write_tokenizer_config(directory: Path, fields: Mapping[str, Any], max_length: int) -> None:
    """tokenizer_config.json and chat_template.jinja."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **special_tokens(fields),
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))
    if template := fields.get("tokenizer.chat_template"):
        (directory / "chat_template.jinja").write_text(template)

"""The tokenizer inside a GGUF file, as Hugging Face tokenizer files.

Byte-level BPE (``gpt2``) is built from the vocabulary and the merges, with the pre-tokenizer that ``tokenizer.ggml.pre``
names; SentencePiece's BPE (``llama``) from the vocabulary and its scores. Each splits as llama.cpp does.
"""

# pyright: basic
# tokenizers tells strict rules too little of their types.

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everlearn.errors import InvalidInput, Unsupported

# Token types of the GGUF format.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
SPACE = "\u2581"

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# As llama.cpp splits (src/llama-vocab.cpp); None is GPT-2's own pattern, which ByteLevel brings.
PATTERNS: dict[str, str | None] = {
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_WORDS}|\p{{N}}|{_REST}",
    "llama3": rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "llama-v3": rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "deepseek-r1-qwen": rf"{_WORDS}|\p{{N}}|{_REST}",
    "phi-2": None,
}
ONE_DIGIT_A_TOKEN = frozenset({"smollm"})
NORMAL_FORM_C = frozenset({"qwen2", "deepseek-r1-qwen"})


def refuse_tokenizer(fields: Mapping[str, Any]) -> None:
    """Raises Unsupported, InvalidInput where :func:`build_tokenizer` does not know this file's kind of tokenizer."""
    kind, pre = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "gpt-2")
    if kind not in ("gpt2", "llama"):
        raise Unsupported(
            f"the tokenizer is of the kind {str(kind)[:80]!r}; gpt2 and llama (SentencePiece) are read"
        )
    if kind == "gpt2" and pre not in PATTERNS:
        known = ", ".join(PATTERNS)
        raise Unsupported(f"the tokenizer splits text as {str(pre)[:80]!r} does; {known} are read")
    beside = "merges" if kind == "gpt2" else "scores"
    for name in ("tokens", beside):
        if not isinstance(fields.get(f"tokenizer.ggml.{name}"), list):
            raise InvalidInput(f"the file has no tokenizer.ggml.{name}")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds = fields.get("tokenizer.ggml.token_type", tokens)
    if len(kinds) != len(tokens) or (kind == "llama" and len(fields["tokenizer.ggml.scores"]) != len(tokens)):
        raise InvalidInput("the tokenizer has not as many tokens as types and scores")


def build_tokenizer(fields: Mapping[str, Any]) -> Any:
    """A ``tokenizers.Tokenizer`` from GGUF metadata. Raises InvalidInput where ids and merges disagree."""
    from tokenizers import AddedToken, processors

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds: list[int] = fields.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    made = sentencepiece(fields) if fields["tokenizer.ggml.model"] == "llama" else byte_level(fields)
    made.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    first = _first_token(fields)
    if first is not None:
        name = tokens[first]
        made.post_processor = processors.TemplateProcessing(
            single=[name, "$A"], pair=[name, "$A", name, "$B:1"], special_tokens=[(name, first)]
        )
    return made


def sentencepiece(fields: Mapping[str, Any]) -> Any:
    """BPE whose merges are those that scores stand for: of two neighbours, the pair with the highest score goes first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    unknown = fields.get("tokenizer.ggml.unknown_token_id")
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    tokenizer = Tokenizer(
        models.BPE(
            {token: at for at, token in enumerate(tokens)},
            scored_merges(fields),
            unk_token=None if unknown is None else tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces]) if prefix else spaces
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def scored_merges(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every way to put a plain token together from two, the best score first."""
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds: list[int] = fields.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    plain = {
        token: score
        for token, score, kind in zip(tokens, fields["tokenizer.ggml.scores"], kinds, strict=True)
        if kind == NORMAL
    }
    found: list[tuple[float, int, str, str]] = []
    for token, score in plain.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in plain and right in plain:
                found.append((-score, -cut, left, right))
    found.sort(key=lambda one: one[0])
    return [(left, right) for _, _, left, right in found]


def byte_level(fields: Mapping[str, Any]) -> Any:
    """BPE over bytes, with the pre-tokenizer that the file names."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
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
    return tokenizer


def _first_token(fields: Mapping[str, Any]) -> int | None:
    added = fields.get("tokenizer.ggml.add_bos_token", fields["tokenizer.ggml.model"] == "llama")
    return fields.get("tokenizer.ggml.bos_token_id") if added else None


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

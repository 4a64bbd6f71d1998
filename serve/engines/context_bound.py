"""Bound the tokens of a text before it is tokenized: what cannot fit a model's context is refused early.

Tokenizing takes seconds per megabyte, and its count comes last. Where every character of a text stays in its tokens,
a token stands for at most so many bytes as the longest one; more bytes than a context of those cannot fit. Some
tokenizers drop text (WordPiece makes one token of an endless word): there only the beginning is tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from everlearn.errors import InvalidInput

PROBE_CHARACTERS = 64 * 1024
"""A text longer than this is tokenized in beginnings of growing length first."""

PROBE_GROWTH = 4

PROBE_MARGIN = 2
"""So many contexts of tokens in a beginning prove that the text is too long: its last word, cut, is tokenized otherwise."""

NFC_SHRINKS = 3
"""Bytes that canonical composition may make one of: a Hangul syllable of nine has three."""


class ContextLengthExceeded(InvalidInput):
    """The prompt and the answer asked for do not fit the model's context."""

    code = "context_length_exceeded"


class Bound:
    """The bound of one tokenizer. `definition` is its tokenizer.json, `longest` the bytes of its longest token."""

    def __init__(self, tokenizer: Tokenizer, definition: dict[str, Any], longest: int, context: int) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.dropped = dropped_bytes(definition)
        shrinks = shrinkage(definition)
        self.most_bytes = None if shrinks is None else longest * shrinks * context

    def check(self, texts: Sequence[str], param: str) -> None:
        """Raises ContextLengthExceeded where `texts` together cannot fit, whatever they say."""
        if self.most_bytes is None or 4 * sum(map(len, texts)) <= self.most_bytes:
            return
        size_bytes = sum(len(text.encode().translate(None, self.dropped)) for text in texts)
        if size_bytes > self.most_bytes:
            raise ContextLengthExceeded(
                f"this model's context is {self.context} tokens, which stand for at most {self.most_bytes} bytes "
                f"of text; {param} has {size_bytes} bytes",
                param=param.partition("[")[0],
            )

    def probe(self, text: str, param: str) -> None:
        """Raises ContextLengthExceeded once a beginning of `text` has far more tokens than the context."""
        size = PROBE_CHARACTERS
        while size < len(text):
            beginning = self.tokenizer.encode_batch_fast([text[:size]], add_special_tokens=False)[0]
            self.check_count(len(beginning.ids), param)
            size *= PROBE_GROWTH

    def beginning(self, text: str, tokens: int) -> str:
        """As much of `text` as has its first `tokens` tokens for certain."""
        size = PROBE_CHARACTERS
        while size < len(text):
            begun = self.tokenizer.encode_batch_fast([text[:size]], add_special_tokens=False)[0]
            if len(begun.ids) > PROBE_MARGIN * tokens:
                break
            size *= PROBE_GROWTH
        return text[:size]

    def check_count(self, tokens: int, param: str) -> None:
        """Raises ContextLengthExceeded where the `tokens` of a part of the text are too many to count the rest."""
        if tokens > PROBE_MARGIN * self.context:
            raise ContextLengthExceeded(
                f"this model's context is {self.context} tokens; {param} has more than {tokens}",
                param=param.partition("[")[0],
            )


def shrinkage(definition: dict[str, Any]) -> int | None:
    """How many bytes of text become at most one byte of tokens; None where whole characters may vanish."""
    model = definition["model"]
    pieces = _parts(definition.get("pre_tokenizer"), "pretokenizers")
    by_bytes = model.get("byte_fallback") or any(piece["type"] == "ByteLevel" for piece in pieces)
    if model.get("type") not in ("BPE", "Unigram") or not by_bytes:
        return None
    if any(token["lstrip"] or token["rstrip"] for token in definition.get("added_tokens", ())):
        return None
    if not all(_keeps_text(piece) for piece in pieces):
        return None
    shrinks = 1
    for step in _parts(definition.get("normalizer"), "normalizers"):
        if step["type"] == "NFC":
            shrinks *= NFC_SHRINKS
        elif step["type"] != "Prepend" and not _writes_spaces(step):
            return None
    return shrinks


def dropped_bytes(definition: dict[str, Any]) -> bytes:
    """Bytes that have no token in a byte-level vocabulary, and so leave no trace (SmolLM2's lacks some)."""
    vocab = definition["model"].get("vocab")
    if not isinstance(vocab, dict) or definition["model"].get("byte_fallback"):
        return b""
    return bytes(byte for stand_in, byte in byte_level_alphabet().items() if stand_in not in vocab)


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (Radford et al. 2019, `bytes_to_unicode`), inverted."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _parts(step: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return (
        [part for one in step[name] for part in _parts(one, name)] if step["type"] == "Sequence" else [step]
    )


def _keeps_text(piece: dict[str, Any]) -> bool:
    if piece["type"] in ("Split", "Punctuation"):
        return piece.get("behavior") != "Removed"
    return piece["type"] in ("ByteLevel", "Digits", "Metaspace", "UnicodeScripts")


def _writes_spaces(step: dict[str, Any]) -> bool:
    """Llama's: a space becomes a mark that is one character, too."""
    return step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == "\u2581"

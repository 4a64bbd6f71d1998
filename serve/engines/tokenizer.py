"""Text to tokens and back: encoding prompts, and decoding a stream token by token."""

from __future__ import annotations

import codecs
import json
import re
from bisect import bisect_left
from functools import cached_property
from itertools import takewhile
from pathlib import Path

from tokenizers import Tokenizer

from everlearn.chat.stops import stops_of
from everlearn.errors import Corrupt
from serve.engines.context_bound import Bound, byte_level_alphabet

BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class TextCodec:
    """A bundle's tokenizer.json, with the bytes that each token stands for. All text enters the tokenizer here.

    `token_bytes[i]` is empty for special tokens: they never become text. Encoding lets other threads run meanwhile:
    of the tokenizer's calls only those for batches do.
    """

    def __init__(self, bundle: Path, vocab_size: int, context: int) -> None:
        path = bundle / "tokenizer.json"
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
            self.literal = Tokenizer.from_file(str(path))
            definition = json.loads(path.read_bytes())
        except Exception as error:
            raise Corrupt(f"tokenizer.json of {bundle.name} cannot be read: {error}") from error
        for each in (self.tokenizer, self.literal):
            each.no_truncation()
            each.no_padding()
            each.add_special_tokens(stops_of(bundle).unmarked)  # in anyone's words they are words
        self.literal.encode_special_tokens = True
        added = self.tokenizer.get_added_tokens_decoder()
        self.special = {token.content: index for index, token in added.items() if token.special}
        byte_level = "ByteLevel" in json.dumps(definition.get("decoder"))
        alphabet = byte_level_alphabet() if byte_level else None
        plain_added = {index: token.content.encode() for index, token in added.items()}
        self.raw_bytes = [
            plain_added[index]
            if index in plain_added
            else self._bytes(self.tokenizer.id_to_token(index), alphabet)
            for index in range(vocab_size)
        ]
        special_ids = set(self.special.values())
        self.token_bytes = [b"" if i in special_ids else raw for i, raw in enumerate(self.raw_bytes)]
        self.names = {name: self._encode(self.literal, name) for name in self.special}
        written = self.raw_bytes if byte_level else map(str.encode, self.tokenizer.get_vocab())
        self.bound = Bound(self.tokenizer, definition, max(map(len, written)), context)

    @staticmethod
    def _bytes(token: str | None, alphabet: dict[str, int] | None) -> bytes:
        if token is None:
            return b""
        if alphabet is not None:
            return b"".join(bytes([alphabet[c]]) if c in alphabet else c.encode() for c in token)
        if match := BYTE_FALLBACK.fullmatch(token):
            return bytes([int(match[1], 16)])
        return token.replace("▁", " ").encode()

    def encode(self, text: str, param: str = "prompt") -> list[int]:
        """Tokens of `text`; the text of a special token becomes that token.

        Raises ContextLengthExceeded, naming `param`, where it is certain before the end that they do not fit.
        """
        return self.encode_parts([text], param)

    def encode_parts(self, parts: list[str], param: str) -> list[int]:
        """Tokens of `parts`: texts as in `encode`, and between them names of special tokens that stay plain text."""
        parts = [whole(part) for part in parts]
        self.bound.check(parts, param)
        ids: list[int] = []
        for index, part in enumerate(parts):
            if index % 2:
                ids += self.names[part]
            elif part:
                self.bound.probe(part, param)
                ids += self._encode(self.tokenizer, part)
            self.bound.check_count(len(ids), param)
        return ids

    def count(self, text: str) -> list[int]:
        """Tokens of a `text` that need not fit the context: of at most so many bytes as one that fits could have."""
        self.bound.check([text := whole(text)], "prompt")
        return self._encode(self.tokenizer, text)

    def encode_literal(self, text: str) -> list[int]:
        """Tokens of a short `text` as plain text, special tokens' names included."""
        return self._encode(self.literal, text)

    @cached_property
    def _in_order(self) -> list[tuple[bytes, int]]:
        return sorted((raw, index) for index, raw in enumerate(self.token_bytes))

    def beginning_with(self, text: bytes) -> list[int]:
        """The tokens whose bytes begin with `text`."""
        first = bisect_left(self._in_order, (text, 0))
        following = (self._in_order[at] for at in range(first, len(self._in_order)))
        return [index for _, index in takewhile(lambda token: token[0].startswith(text), following)]

    def decode(self, tokens: list[int]) -> str:
        """The text of `tokens`; special tokens show as their names."""
        return self.tokenizer.decode_batch([tokens], skip_special_tokens=False)[0]

    @staticmethod
    def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
        return tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids


def whole(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate: half a character has no tokens."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class TextStream:
    """Decodes one answer token by token; half of a UTF-8 sequence is held back."""

    def __init__(self, codec: TextCodec) -> None:
        self.token_bytes = codec.token_bytes
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this token completes (often empty)."""
        return self.decoder.decode(self.token_bytes[token])

    @property
    def within_character(self) -> bool:
        """The bytes of a character have come in part."""
        return bool(self.decoder.getstate()[0])

    def finish(self) -> str:
        """The rest, once no token follows; an incomplete UTF-8 sequence becomes U+FFFD."""
        return self.decoder.decode(b"", final=True)

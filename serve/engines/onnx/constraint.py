"""Constrained answers: what a grammar (`serve.engines.grammar`) allows next, through llguidance."""

from __future__ import annotations

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from everlearn.errors import InvalidInput, Unsupported
from serve.engines.onnx.text import TextCodec


class Constraints:
    """Compiles grammars against one vocabulary."""

    def __init__(self, codec: TextCodec, eos_ids: list[int]) -> None:
        self.vocab_size = len(codec.token_bytes)
        self.tokens = LLTokenizer(_Vocabulary(codec, eos_ids[0]), n_vocab=self.vocab_size, eos_token=eos_ids)  # type: ignore[arg-type]

    def compile(self, lark: str, param: str) -> Constraint:
        """`lark` in llguidance's dialect; raises InvalidInput naming `param`. May take a second."""
        grammar = LLMatcher.grammar_from_lark(lark)
        matcher = LLMatcher(
            self.tokens, grammar, limits=LLParserLimits(max_grammar_size=200_000), log_level=0
        )
        if matcher.is_error():
            raise InvalidInput(f"{param} cannot be compiled: {matcher.get_error()[:500]}", param=param)
        beginning = matcher.deep_copy()
        beginning.compute_bitmask()
        if beginning.is_error():
            raise InvalidInput(f"{param} admits no answer that ends", param=param)
        return Constraint(matcher, self.vocab_size)


class Constraint:
    """The state of one constrained answer."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self.matcher = matcher
        self.bits = np.zeros((vocab_size + 31) // 32, np.uint32)
        self.vocab_size = vocab_size

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next: (vocab,)."""
        self.matcher.unsafe_compute_mask_ptr(self.bits.ctypes.data, self.bits.nbytes)
        if self.matcher.is_error():
            raise Unsupported(f"the grammar became too complex: {self.matcher.get_error()[:300]}")
        bits = np.unpackbits(self.bits.view(np.uint8), bitorder="little")[: self.vocab_size]
        return bits.view(np.bool_)

    def advance(self, token: int) -> bool:
        """Take `token`; True once the answer is complete and nothing may follow."""
        self.matcher.consume_token(token)
        return self.matcher.is_stopped()

    def copy(self) -> Constraint:
        """An independent copy, for the next of n answers."""
        return Constraint(self.matcher.deep_copy(), self.vocab_size)


class _Vocabulary(TokenizerWrapper):
    """What llguidance asks of a tokenizer."""

    def __init__(self, codec: TextCodec, eos_id: int) -> None:
        self.eos_token_id = eos_id
        self.bos_token_id = None
        self.tokens = codec.raw_bytes
        self.special_token_ids = sorted(codec.special.values())
        self.is_tokenizer_wrapper = True
        self.codec = codec

    def __call__(self, text: bytes | str) -> list[int]:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self.codec.encode_literal(plain)

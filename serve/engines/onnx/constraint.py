"""Constrained answers: JSON schemas, Lark grammars and tool calls, through llguidance."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from everlearn.chat_template import TOOL_CLOSE, TOOL_OPEN
from everlearn.errors import InvalidInput, Unsupported
from serve.engines.onnx.text import TextCodec
from serve.protocol import ChatRequest, NamedTool, Tool

COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a value, so that no whitespace can go on for ever."""

MAX_CALLS = 8
"""Calls in one answer: a small model that may repeat itself does so until it is stopped."""


class Constraints:
    """Compiles grammars against one vocabulary."""

    def __init__(self, codec: TextCodec, eos_ids: list[int]) -> None:
        self.vocab_size = len(codec.token_bytes)
        self.tokens = LLTokenizer(_Vocabulary(codec, eos_ids[0]), n_vocab=self.vocab_size, eos_token=eos_ids)  # type: ignore[arg-type]

    def compile(self, grammar: str, param: str) -> Constraint:
        """`grammar` as made by the functions below; raises InvalidInput naming `param`. May take a second."""
        matcher = LLMatcher(
            self.tokens, grammar, limits=LLParserLimits(max_grammar_size=200_000), log_level=0
        )
        if matcher.is_error():
            raise InvalidInput(f"{param} cannot be compiled: {matcher.get_error()[:500]}", param=param)
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


def json_grammar(schema: dict[str, Any]) -> str:
    """A grammar of the JSON values that `schema` admits."""
    return LLMatcher.grammar_from_json_schema(schema, overrides=COMPACT)


def lark_grammar(source: str) -> str:
    """A grammar in llguidance's dialect of Lark."""
    return LLMatcher.grammar_from_lark(source)


def tool_grammar(tools: dict[str, dict[str, Any]], *, text_allowed: bool, several: bool) -> str:
    """What `tool_lark` says, compiled to a grammar."""
    return lark_grammar(tool_lark(tools, text_allowed=text_allowed, several=several))


def tool_lark(tools: dict[str, dict[str, Any]], *, text_allowed: bool, several: bool) -> str:
    """Calls of `tools` (name → JSON schema of its arguments), in the Hermes form that open models are trained on.

    With `text_allowed` the answer is either plain text or calls.
    """
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": schema},
            "required": ["name", "arguments"],
            "additionalProperties": False,
            "x-guidance": COMPACT,
        }
        for name, schema in tools.items()
    ]
    rules = [f"call_{i}: %json {json.dumps(call)}" for i, call in enumerate(calls)]
    choice = " | ".join(f"call_{i}" for i in range(len(calls)))
    calls_rule = f'tool ("\\n" tool){{0,{MAX_CALLS - 1}}}' if several else "tool"
    start = f"TEXT | {calls_rule}" if text_allowed else calls_rule
    lines = [f"start: {start}", f"tool: {json.dumps(TOOL_OPEN)} ({choice}) {json.dumps(TOOL_CLOSE)}"]
    if text_allowed:
        lines.append(r"TEXT: /[^<](.|\n)*/")
    return "\n".join(lines + rules)


def offered_tools(request: ChatRequest) -> list[Tool]:
    """The tools that this answer may call."""
    if not request.tools or request.tool_choice == "none":
        return []
    if isinstance(request.tool_choice, NamedTool):
        return [tool for tool in request.tools if tool.function.name == request.tool_choice.function.name]
    return request.tools


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

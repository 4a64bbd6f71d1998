"""Constrained answers: what a grammar (`serve.engines.grammar`) allows next, through llguidance."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from everlearn.errors import InvalidInput
from serve.engines.compile_check import COMPILE_CHECK, LIMITS
from serve.engines.onnx.priority import let_steps_go_first
from serve.engines.tokenizer import TextCodec

QUICK_S = 0.002
"""A mask that takes longer is computed by threads of low priority, and the answer waits while others go on."""

SPENT_S = 1.0
TOKEN_S = 0.005
"""An answer's grammar may use this much computing, and gets so much back with each token (JSON: 0.3 ms each)."""

LONGEST_S = 10.0
"""A mask whose thread has not come to its end by then is given up, however little of a core it had."""

OUTCOME_S = 0.05
"""An answer that is full says that it was cut, unless its grammar tells by then that it is whole."""

QUICK_THREADS = 2
SLOW_THREADS = 2

KEPT_GRAMMARS = 32
"""Compiled grammars kept for the next request with the same one."""


class Constraints:
    """Compiles grammars against one vocabulary, and computes what they allow beside the model's steps."""

    def __init__(self, codec: TextCodec, eos_ids: list[int]) -> None:
        self.vocab_size = len(codec.token_bytes)
        self.tokens = LLTokenizer(_Vocabulary(codec, eos_ids[0]), n_vocab=self.vocab_size, eos_token=eos_ids)  # type: ignore[arg-type]
        self.lanes = Lanes()
        self.known: OrderedDict[str, Constraint] = OrderedDict()
        self.lock = threading.Lock()

    def compile(self, lark: str, param: str) -> Constraint:
        """`lark` in llguidance's dialect; raises InvalidInput naming `param`. May take seconds."""
        with self.lock:
            if known := self.known.get(lark):
                self.known.move_to_end(lark)
                return known.copy(param)
        failed, messages = COMPILE_CHECK.validate(lark)
        if failed:
            raise InvalidInput(f"{param} cannot be compiled: {messages[0][:500]}", param=param)
        matcher = LLMatcher(self.tokens, LLMatcher.grammar_from_lark(lark), limits=LIMITS, log_level=0)
        if matcher.is_error():
            raise InvalidInput(f"{param} cannot be compiled: {matcher.get_error()[:500]}", param=param)
        beginning = matcher.deep_copy()
        beginning.compute_bitmask()
        if beginning.is_error():
            raise InvalidInput(f"{param} admits no answer that ends", param=param)
        constraint = Constraint(matcher, self.vocab_size, param, self.lanes)
        constraint.begin()
        with self.lock:
            self.known[lark] = constraint
            if len(self.known) > KEPT_GRAMMARS:
                self.known.popitem(last=False)
        return constraint.copy(param)


class Lanes:
    """Threads that compute masks: a quick one never waits for one that takes long, which yields to the model's steps."""

    def __init__(self) -> None:
        self.quick = ThreadPoolExecutor(QUICK_THREADS, "mask")
        self.slow = ThreadPoolExecutor(SLOW_THREADS, "slow-mask", initializer=let_steps_go_first)
        together = threading.Barrier(
            QUICK_THREADS + 1
        )  # threads have the priority of the one that starts them
        for _ in range(QUICK_THREADS):
            self.quick.submit(together.wait)
        together.wait()


class Constraint:
    """The state of one constrained answer. The mask of the next token is computed while the model takes its step.

    It may use `SPENT_S` of computing, of which it gets `TOKEN_S` back with each token: an ambiguous grammar can take
    seconds for one. Whoever asks for a mask beyond that gets InvalidInput.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, param: str, lanes: Lanes) -> None:
        self.matcher = matcher
        self.vocab_size = vocab_size
        self.param = param
        self.lanes = lanes
        self.left_s = SPENT_S
        self.quick = True
        """The last token took no time worth mentioning."""
        self.complete = False
        """Nothing may follow."""
        self.told = True
        """`complete` knows of the last token."""
        self.started_s = 0.0
        self.next: Future[NDArray[np.bool_]] = Future()

    def begin(self) -> None:
        """Compute the first mask here and now."""
        self.next.set_result(self._mask())

    def ready(self, timeout_s: float = 0.0) -> bool:
        """Whether `allowed` has its answer, or an error, within `timeout_s`."""
        if timeout_s > 0 and not self.next.done():
            wait([self.next], timeout_s)
        return self.next.done() or self._overdue

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next: (vocab,). Waits; raises InvalidInput once the grammar took too long."""
        while not self.next.done():
            if self._overdue:
                raise self._too_slow()
            wait([self.next], LONGEST_S)
        if self.left_s < 0:
            raise self._too_slow()
        return self.next.result()

    def advance(self, token: int) -> bool:
        """Take `token`; True once the answer is known to be complete: a slow grammar tells later, by `complete`."""
        self.left_s = min(SPENT_S, self.left_s + TOKEN_S)
        if self.quick:
            self._consume(token)
            if self.complete:
                return True
            self.started_s = 0.0
            self.next = self.lanes.quick.submit(self._mask)
        else:
            self.told = False
            self.started_s = 0.0
            self.next = self.lanes.slow.submit(self._consume_and_mask, token)
        return False

    def copy(self, param: str | None = None) -> Constraint:
        """An independent copy of one that has not advanced, for the next of n answers."""
        copy = Constraint(self.matcher.deep_copy(), self.vocab_size, param or self.param, self.lanes)
        copy.quick, copy.left_s, copy.next = self.quick, self.left_s, self.next
        return copy

    @property
    def _overdue(self) -> bool:
        return bool(self.started_s) and time.monotonic() - self.started_s > LONGEST_S

    def _too_slow(self) -> InvalidInput:
        return InvalidInput(
            f"{self.param} takes too long to follow: beyond {1000 * TOKEN_S:g} ms for each token an answer has "
            f"{SPENT_S:g} s of computing; make it less ambiguous",
            param=self.param,
        )

    def _consume_and_mask(self, token: int) -> NDArray[np.bool_]:
        self.started_s = time.monotonic()
        self._consume(token)
        return self._mask()

    def _consume(self, token: int) -> None:
        began_s = time.thread_time()
        self.matcher.consume_token(token)
        self.complete = self.matcher.is_stopped() and not self.matcher.is_error()
        self.told = True
        took_s = time.thread_time() - began_s
        self.left_s -= took_s
        self.quick = took_s < QUICK_S

    def _mask(self) -> NDArray[np.bool_]:
        self.started_s = self.started_s or time.monotonic()
        began_s = time.thread_time()
        bits = np.zeros((self.vocab_size + 31) // 32, np.uint32)
        if not self.matcher.is_error():
            self.matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if self.matcher.is_error():
            raise InvalidInput(
                f"{self.param} became too complex: {self.matcher.get_error().splitlines()[0][:300]}",
                param=self.param,
            )
        took_s = time.thread_time() - began_s
        self.left_s -= took_s
        self.quick = self.quick and took_s < QUICK_S
        allowed = np.unpackbits(bits.view(np.uint8), bitorder="little")[: self.vocab_size]
        return allowed.view(np.bool_)


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

"""One answer being generated, and the pieces it is delivered in."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from everlearn.errors import EverlearnError
from serve.engines.calls import CallPart, FinishReason, Reading, Said
from serve.engines.onnx.decoding.constraint import OUTCOME_S, Constraint
from serve.engines.onnx.decoding.draft import Draft
from serve.engines.onnx.decoding.sampling import Sampler, SamplingOptions, TokenLogprobs, log_probabilities
from serve.engines.onnx.decoding.softmax import Shares, Softmax
from serve.engines.tokenizer import TextCodec, TextStream


@dataclass(frozen=True)
class SampledToken:
    """A token with the log-probabilities that the client asked for; the first of a prompt has none.

    `echoed`: it is the prompt's.
    """

    token: int
    logprobs: TokenLogprobs | None
    echoed: bool = False


@dataclass
class Piece:
    """What one or more steps added to an answer."""

    text: str = ""
    calls: list[CallPart] = field(default_factory=list)
    sampled: list[SampledToken] = field(default_factory=list)
    finish: FinishReason | None = None
    stop: str | None = None
    """The stop string that ended it."""
    error: EverlearnError | None = None

    @property
    def last(self) -> bool:
        """Nothing follows."""
        return self.finish is not None or self.error is not None

    @property
    def empty(self) -> bool:
        """It adds nothing that a client sees."""
        return not (self.last or self.text or self.calls or self.sampled)


class Generation:
    """The state of one answer. `tokens` is the prompt and then what was generated."""

    def __init__(
        self,
        prompt: list[int],
        *,
        codec: TextCodec,
        eos_ids: list[int],
        options: SamplingOptions,
        max_new_tokens: int,
        stop: list[str],
        tools: Sequence[str] = (),
        must_call: bool = False,
        json: bool = False,
        constraint: Constraint | None = None,
        left_open: Sequence[str] = (),
        flexible: bool = False,
        seeded: bool = False,
        salt: str = "",
        echo: bool = False,
    ) -> None:
        self.tokens: NDArray[np.int64] = np.empty(len(prompt) + max_new_tokens, np.int64)
        self.tokens[: len(prompt)] = prompt
        self.prompt_tokens = len(prompt)
        self.length = len(prompt)
        self.cached = 0
        """How many of `tokens` have keys and values in the row."""
        self.exact_tokens = 0
        """How many of those, from the first, were computed as a prompt: generated ones have other last bits."""
        self.reused_tokens = 0
        self.admitted_ns = 0
        """When it got its row for the first time, and when its first token came: nanoseconds since 1970."""
        self.first_token_ns = 0
        self.cancelled = False
        self.flexible = flexible
        """It gives up its row while others wait for one."""
        self.seeded = seeded
        """Its text is the same whoever else is there."""
        self.salt = salt
        """Whose it is: only answers of one salt share what was computed."""
        self.echo = echo
        """Its prompt is still to be delivered."""
        self.scores: list[TokenLogprobs] = []
        """Log-probabilities of the prompt's tokens but the first, as far as it is computed."""
        self.draft = Draft()
        self.sampler = Sampler(options)
        self.constraint = constraint
        self.left_open = left_open
        """Of the client's schemas, what `constraint` does not enforce."""
        self.names_end = echo
        """Clients that score a prompt leave the last token out, whatever it is."""
        self.raw_bytes = codec.raw_bytes
        self.eos_ids = frozenset(eos_ids)
        self.stream = TextStream(codec)
        self.codec = codec
        self.reading = Reading(stop, tools, must_call=must_call, json=json)
        self._told_by_s = 0.0

    @property
    def new_tokens(self) -> int:
        """Generated so far, the end token included."""
        return self.length - self.prompt_tokens

    @property
    def prefill_tokens(self) -> int:
        """How many tokens are computed as a prompt. A seeded answer that lost its row generates its tokens again."""
        return self.prompt_tokens if self.seeded else self.length

    @property
    def replays(self) -> bool:
        """The token after the next step is known already."""
        return self.cached + 1 < self.length

    def known_tokens(self, *, exact: bool) -> int:
        """How many tokens' keys and values others may take from its row."""
        return min(self.exact_tokens, self.cached) if exact else self.cached

    def forget(self) -> None:
        """Its row is gone, with what was computed."""
        self.cached = self.exact_tokens = 0
        self.scores.clear()

    @property
    def scored(self) -> bool:
        """Whether the log-probabilities of its prompt are wanted still."""
        return self.echo and self.sampler.options.top_logprobs is not None

    @property
    def full(self) -> bool:
        """No token fits."""
        return self.length == len(self.tokens)

    def score(self, logits: NDArray[np.float32]) -> None:
        """Take note of the prompt's next tokens, by the logits (n, vocab) after each of the last n computed."""
        top = self.sampler.options.top_logprobs or 0
        for each, token in zip(logits, self.tokens[len(self.scores) + 1 : self.prompt_tokens], strict=False):
            self.scores.append(log_probabilities(each, int(token), top))

    def echoed(self) -> Piece:
        """The prompt, as the answer's first piece."""
        prompt = [int(token) for token in self.tokens[: self.prompt_tokens]]
        text = b"".join(self.raw_bytes[token] for token in prompt).decode("utf-8", "replace")
        logprobs = [None, *self.scores] if self.scored else []
        sampled = [
            SampledToken(token, one, echoed=True) for token, one in zip(prompt, logprobs, strict=False)
        ]
        self.echo = False
        self.scores = []
        return Piece(text, sampled=sampled, finish="length" if self.full else None)

    @property
    def last_token(self) -> int:
        """The latest of prompt and answer."""
        return int(self.tokens[self.length - 1])

    def guess(self, limit: int) -> NDArray[np.int64]:
        """Tokens that may come next, to be checked in the next step: at most `limit`, as far as the answer goes on."""
        room = len(self.tokens) - self.length - 1
        return self.draft.propose(self.tokens[: self.length], min(limit, room))

    def adjust(self, logits: NDArray[np.float32]) -> None:
        """Write over `logits` (vocab,) what its options and its grammar make of them."""
        allowed = self._without_repeated_keys(self.constraint.allowed()) if self.constraint else None
        self.sampler.adjust(logits, allowed)

    def advance(self, logits: NDArray[np.float32], shares: Shares | None) -> Piece:
        """Choose the next token from adjusted `logits` (vocab,), and say what that adds to the answer."""
        token, logprobs = self.sampler.choose(logits, shares)
        self.tokens[self.length] = token
        self.length += 1
        self.first_token_ns = self.first_token_ns or time.time_ns()
        ended = token in self.eos_ids
        complete = self.constraint.advance(token) if self.constraint and not ended else False
        said = Said() if ended else self.reading.feed(self.stream.push(token))
        if ended or complete or self.reading.stopped or (self.full and self._knows_its_end()):
            complete = complete or bool(self.constraint and self.constraint.complete)
            said.add(self._rest("stop" if ended or complete else "length"))
        piece = Piece(said.text, said.calls, finish=said.finish, stop=said.stop)
        if logprobs is not None and (self.names_end or not ended):
            piece.sampled.append(SampledToken(token, logprobs))
        return piece

    def _without_repeated_keys(self, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """No grammar keeps an object from having a key twice, where it may have any: `allowed` without such keys' ends.

        Where nothing else is allowed, as much as the grammar does.
        """
        endings = [] if self.stream.within_character else self.reading.repeated_keys()
        if not endings:
            return allowed
        narrowed = allowed.copy()
        for ending in endings:
            narrowed[self.codec.beginning_with(ending.encode())] = False
        return narrowed if narrowed.any() else allowed

    def end(self) -> Piece:
        """The last piece of an answer that is `over` after its last token was delivered."""
        said = self._rest("stop" if self.constraint and self.constraint.complete else "length")
        return Piece(said.text, said.calls, finish=said.finish, stop=said.stop)

    def _rest(self, finish: FinishReason) -> Said:
        said = self.reading.feed(self.stream.finish())
        said.add(self.reading.finish(finish))
        return said

    def ready(self, timeout_s: float = 0.0) -> bool:
        """Whether `advance` will choose a token at once: one fits, and nothing of its grammar is still being computed."""
        return (self.constraint is None or self.constraint.ready(timeout_s)) and not self.full

    @property
    def over(self) -> bool:
        """Whether it ended after its last token was delivered, as its grammar told, or did not tell in time."""
        if self.constraint is None:
            return False
        return self.constraint.complete or (self.full and self._knows_its_end())

    def _knows_its_end(self) -> bool:
        """Of one that is full: whether it is known to be whole or cut. Slow grammars have `OUTCOME_S` to tell."""
        if self.constraint is None or self.constraint.told or self.constraint.ready():
            return True
        self._told_by_s = self._told_by_s or time.monotonic() + OUTCOME_S
        return time.monotonic() > self._told_by_s


def advance(generations: Sequence[Generation], logits: NDArray[np.float32], softmax: Softmax) -> list[Piece]:
    """The next token of each, from its row of `logits` (n, vocab), which are written over; an error is a piece."""
    pieces: list[Piece | None] = [None] * len(generations)
    for at, generation in enumerate(generations):
        try:
            generation.adjust(logits[at])
        except EverlearnError as error:
            pieces[at] = Piece(error=error)
    going = [at for at, piece in enumerate(pieces) if piece is None]
    draws = [at for at in going if generations[at].sampler.draws]
    temperatures = [generations[at].sampler.options.temperature for at in draws]
    chosen = logits if len(draws) == len(logits) else logits[draws]
    shares = dict(zip(draws, softmax.shares(chosen, temperatures), strict=True))
    for at in going:
        pieces[at] = generations[at].advance(logits[at], shares.get(at))
    return [piece for piece in pieces if piece is not None]

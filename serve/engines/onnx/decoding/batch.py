"""The rows of the decoder and the memory of their keys and values: who holds them, and how they are given up.

Rows 0..n are the running answers, dense; prompts are computed in the highest rows. When an answer ends, the last row
moves into its place. A prompt's known beginning comes from another row or from the prefix cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from serve.engines.onnx.decoding.decoder import Decoder
from serve.engines.onnx.decoding.generation import Generation
from serve.engines.onnx.decoding.kv_cache import Block
from serve.engines.onnx.decoding.prefilling import Beside, Prefilling
from serve.engines.onnx.decoding.prefix_cache import SHORTEST_TOKENS, PrefixCache, common_prefix


@dataclass
class Counters:
    """What happened since the start; read by the metrics, written by the scheduler's thread."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    decode_steps: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    preemptions: int = 0


class Batch:
    """The answers that run, the prompts that are computed, and the answers that gave up their row for others."""

    def __init__(
        self,
        decoder: Decoder,
        counters: Counters,
        *,
        kv_tokens: int,
        prefix_tokens: int,
        prefill_chunk: int,
    ) -> None:
        self.decoder = decoder
        self.counters = counters
        self.kv_tokens = kv_tokens
        self.prefixes = PrefixCache(prefix_tokens)
        self.running: list[Generation] = []
        self.prefilling = Prefilling(decoder.rows, prefill_chunk)
        self.beside = Beside(decoder)
        self.parked: dict[Generation, Block] = {}
        """Keys and values of answers that gave their row to others: they go on as if nothing had been."""

    @property
    def active(self) -> int:
        """Answers that hold a row."""
        return len(self.running) + len(self.prefilling)

    @property
    def used_tokens(self) -> int:
        """Keys and values that rows hold now."""
        return sum(generation.cached for generation in [*self.running, *self.prefilling])

    @property
    def free_tokens(self) -> int:
        """Keys and values that fit besides, if no prefix were kept."""
        return self.kv_tokens - self.used_tokens - sum(block.shape[2] for block in self.parked.values())

    def at_rest(self, row: int) -> tuple[Generation | None, int]:
        """The prompt in `row`, once nobody writes there, and how many tokens' keys and values there are to move."""
        other = self.prefilling.at(row)
        if other is None or other is not self.prefilling.away:
            return other, other.cached if other else 0
        self.beside.wait()
        return other, other.cached + self.beside.chunk

    def has_room(self, tokens: int) -> bool:
        if self.active == self.decoder.rows:
            return False
        return not self.active or tokens <= self.free_tokens - self.prefilling.promised_tokens

    def reuse(self, generation: Generation, row: int) -> None:
        """Fill the row with the longest known beginning; at least two tokens remain to be computed.

        A seeded answer takes only what was computed as a prompt: generated tokens have other last bits.
        """
        wanted = generation.tokens[: 0 if generation.scored else max(0, generation.prefill_tokens - 2)]
        kept, length = self.prefixes.find(wanted, generation.salt, exact=generation.seeded)
        rows = {at: other for at, other in enumerate(self.running)} | self.prefilling.rows
        shared = {
            at: common_prefix(other.tokens[: other.known_tokens(exact=generation.seeded)], wanted)
            for at, other in rows.items()
            if other.salt == generation.salt and other is not generation
        }
        source = max(shared, key=shared.__getitem__, default=None)
        if source is not None and shared[source] > length and shared[source] >= SHORTEST_TOKENS:
            length = shared[source]
            self.decoder.copy(source, row, length)
            generation.exact_tokens = min(length, rows[source].exact_tokens)
        elif kept is not None:
            self.decoder.write(row, kept.block, length)
            generation.exact_tokens = min(length, kept.exact_tokens)
        generation.cached = length
        if generation.new_tokens == 0:
            generation.reused_tokens = length
        self.counters.reused_tokens += length

    def unpark(self) -> None:
        """Forget what the one parked last had computed."""
        generation, _ = self.parked.popitem()
        generation.forget()

    def leave(self, row: int) -> None:
        """Take an answer out of the batch: keep its prefix, move the last row into its place."""
        generation = self.running[row]
        self._keep_prefix(generation, row)
        last = len(self.running) - 1
        if row != last:
            self.decoder.copy(last, row, self.running[last].cached)
            self.running[row] = self.running[last]
        self.running.pop()
        self.decoder.release(last)

    def leave_prefill(self, generation: Generation) -> None:
        row = self.prefilling.row_of(generation)
        self._keep_prefix(generation, row)
        self.prefilling.remove(generation)
        self.decoder.release(row)

    def _keep_prefix(self, generation: Generation, row: int) -> None:
        tokens = generation.tokens[: generation.cached]
        if self.prefixes.wants(tokens, generation.salt):
            block = self.decoder.read(row, len(tokens))
            self.prefixes.keep(tokens, block, generation.salt, generation.exact_tokens)

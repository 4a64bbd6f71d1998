"""Continuous batching: requests join and leave the decode batch at any step.

Rows 0..n of the decoder are the running answers, dense. Prompts are computed in the highest rows, several by turns, in
chunks between decode steps, so that neither running streams nor short prompts wait for a long one; a prompt that
is computed moves to row n. When an answer ends, the last row moves into its place. A prompt's known beginning comes from
another row or from the prefix cache. Orca (Yu et al., OSDI 2022) is the source of iteration-level scheduling,
Sarathi-Serve (Agrawal et al., OSDI 2024) of chunked prefill.

An answer with a seed has the same bits whoever else is there: its steps run in the kernel of batches, what it takes
from others was computed as it would compute it, and what was generated before it lost its row is generated again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from itertools import islice

import numpy as np
import structlog

from everlearn.errors import RateLimited, Unavailable
from serve.engines.onnx.decoding.batch import Batch, Counters
from serve.engines.onnx.decoding.decoder import Decoder
from serve.engines.onnx.decoding.generation import Generation, Piece, advance
from serve.engines.onnx.decoding.prefilling import chunk_of
from serve.engines.onnx.decoding.prefix_cache import SHORTEST_TOKENS, common_prefix
from serve.engines.onnx.decoding.softmax import Softmax
from serve.engines.onnx.decoding.waiting import WaitingQueue
from serve.engines.onnx.memory import exit_code

log = structlog.get_logger()

GRACE_S = 0.002
"""How long a step waits for the grammars of its rows; a row whose mask is late takes the same step again."""

LOOK_AHEAD = 16
"""So many in the queue may pass one that cannot begin yet."""

LATE_S = 0.05
"""How long the loop waits where every row's mask is late, before it looks for other work."""

Delivery = list[tuple[Generation, Piece]]


class Scheduler(threading.Thread):
    """Runs the decoder in its own thread; `deliver` gets each step's pieces, in that thread."""

    def __init__(
        self,
        decoder: Decoder,
        deliver: Callable[[Delivery], None],
        *,
        kv_tokens: int,
        prefix_tokens: int,
        prefill_chunk: int,
        queue_limit: int,
        batch_invariant: bool,
    ) -> None:
        super().__init__(name="scheduler", daemon=True)
        self.decoder = decoder
        self.deliver = deliver
        self.queue_limit = queue_limit
        self.batch_invariant = batch_invariant
        self.softmax = Softmax(decoder.config.vocab_size)
        self.waiting = WaitingQueue()
        self.counters = Counters()
        self.batch = Batch(
            decoder,
            self.counters,
            kv_tokens=kv_tokens,
            prefix_tokens=prefix_tokens,
            prefill_chunk=prefill_chunk,
        )
        self.stopping = False
        self.leaving = False
        self.failed = False
        self.changed = threading.Condition()
        self.beat = 0.0

    # -- called from other threads ------------------------------------------------------------------------

    def submit(self, generations: list[Generation]) -> None:
        """Queue answers; raises RateLimited when the queue is full, Unavailable after a failure."""
        with self.changed:
            if self.failed or self.stopping or self.leaving:
                raise Unavailable("the engine is stopping")
            if self.waiting.length_for(generations[0]) + len(generations) > self.queue_limit:
                raise RateLimited(
                    f"the engine's queue of {self.queue_limit} requests is full", retry_after_s=1
                )
            if not (self.waiting or self.batch.active):
                self.beat = time.monotonic()
            for generation in generations:
                self.waiting.join(generation)
            self.changed.notify()

    def cancel(self, generation: Generation) -> None:
        """Drop an answer nobody waits for; its row is free after the current step."""
        with self.changed:
            generation.cancelled = True
            self.changed.notify()

    def leave(self, leaving: bool) -> None:
        """While another engine has taken over, whoever has no row yet shall ask there, and nobody new comes here."""
        with self.changed:
            self.leaving = leaving
            self.changed.notify()

    def stop(self) -> None:
        """End the thread after the current step."""
        with self.changed:
            self.stopping = True
            self.changed.notify()

    @property
    def stuck_s(self) -> float:
        """How long the thread has spent in one step, or a chunk beside has taken, while there is work for it."""
        since = min(self.beat, self.batch.beside.began_s) if self.batch.beside else self.beat
        return time.monotonic() - since if self.waiting or self.batch.active else 0.0

    # -- the scheduler's own thread -----------------------------------------------------------------------

    def run(self) -> None:
        try:
            while self._wait():
                self.beat = time.monotonic()
                self._drop_cancelled()
                delivery: Delivery = self._sent_away()
                self._prefill_some(delivery)
                self._decode_step(delivery)
                if delivery:
                    self.deliver(delivery)
            self.batch.beside.wait()
        except BaseException as error:  # noqa: BLE001 (the process ends: the supervisor starts a clean one)
            try:
                log.exception("engine failed", error=repr(error))
                self.failed = True
                self._fail_all()
            finally:
                os._exit(exit_code(error))

    def _wait(self) -> bool:
        with self.changed:
            self.changed.wait_for(lambda: self.stopping or self.waiting or self.batch.active)
            return not self.stopping

    def _fail_all(self) -> None:
        error = Unavailable("the engine failed while generating; it restarts")
        doomed = [*self.batch.running, *self.waiting, *self.batch.prefilling]
        self.deliver([(generation, Piece(error=error)) for generation in doomed])

    def _sent_away(self) -> Delivery:
        """After a hand-over: an error for each answer that has not begun."""
        if not (self.leaving and self.waiting):
            return []
        with self.changed:
            away = [generation for generation in self.waiting if not generation.admitted_ns]
            for generation in away:
                self.waiting.leave(generation)
        error = Unavailable("another engine has taken over")
        return [(generation, Piece(error=error)) for generation in away]

    def _drop_cancelled(self) -> None:
        with self.changed:
            for generation in [generation for generation in self.waiting if generation.cancelled]:
                self.waiting.leave(generation)
                self.batch.parked.pop(generation, None)
        for generation in [one for one in self.batch.prefilling.here if one.cancelled]:
            self.batch.leave_prefill(generation)
        for row in reversed(range(len(self.batch.running))):
            if self.batch.running[row].cancelled:
                self.batch.leave(row)

    def _prefill_some(self, delivery: Delivery) -> None:
        """At most one chunk's worth of prompt tokens, of one or more requests, and one chunk beside."""
        if self.batch.beside and (not self.batch.running or self.batch.beside.wait(0.0)):
            self._finish_beside(delivery)
        self._yield_prefill()
        while self._admit():
            pass
        budget = self.batch.prefilling.budget(len(self.batch.running))
        waits: list[Generation] = []
        while budget > 1 and (generation := self.batch.prefilling.next(waits)):
            if self.batch.prefilling.belongs_beside(generation, len(self.batch.running), len(self.waiting)):
                if self.batch.beside:
                    waits.append(generation)
                else:
                    self._begin_beside(generation)
                continue
            chunk = chunk_of(generation, budget)
            tokens = generation.tokens[generation.cached : generation.cached + chunk]
            began_s = time.perf_counter()
            row = self.batch.prefilling.row_of(generation)
            if generation.scored:
                every = self.decoder.score(row, tokens, generation.cached)
                generation.score(every)
                logits = every[-1]
            else:
                logits = self.decoder.prefill(row, tokens, generation.cached)
            self.batch.prefilling.took(chunk, time.perf_counter() - began_s)
            budget -= chunk
            self._computed(generation, chunk, logits, delivery)

    def _begin_beside(self, generation: Generation) -> None:
        """Compute a chunk of it while the answers that run go on."""
        self.batch.prefilling.away = generation
        self.batch.beside.begin(generation, self.batch.prefilling.row_of(generation))

    def _finish_beside(self, delivery: Delivery) -> None:
        """Wait for the chunk that is computed beside."""
        generation = self.batch.prefilling.away
        assert generation
        logits = self.batch.beside.take()
        self.batch.prefilling.away = None
        self._computed(generation, self.batch.beside.chunk, logits, delivery)

    def _computed(self, generation: Generation, chunk: int, logits: np.ndarray, delivery: Delivery) -> None:
        """So many tokens of its prompt more; with the last one its answer begins."""
        generation.exact_tokens += chunk if generation.exact_tokens == generation.cached else 0
        generation.cached += chunk
        self.counters.prompt_tokens += chunk
        if generation.cancelled:
            self.batch.leave_prefill(generation)
            return
        if generation.cached < generation.prefill_tokens:
            return
        echoed = generation.echo
        if echoed:
            delivery.append((generation, generation.echoed()))
        if generation.full:
            self.batch.leave_prefill(generation)
            if not echoed:  # it lost its row before its grammar had told how it ends
                delivery.append((generation, generation.end()))
        else:
            self._run(generation, logits, delivery)
        while self._admit():
            pass

    def _run(self, generation: Generation, logits: np.ndarray, delivery: Delivery) -> None:
        """Move a prompt that is computed to the running rows, and choose the first token of its answer.

        Where that has to wait, the next decode step computes the last token once more.
        """
        row, source = len(self.batch.running), self.batch.prefilling.row_of(generation)
        other, held = self.batch.at_rest(row)
        self.batch.prefilling.remove(generation)
        if other and other is not generation:  # every row is taken: they change places
            block = self.decoder.read(source, generation.cached)
            self.decoder.copy(row, source, held)
            self.decoder.write(row, block, generation.cached)
            self.batch.prefilling.move(other, source)
        elif row != source:
            self.decoder.copy(source, row, generation.cached)
            self.decoder.release(source)
        self.batch.running.append(generation)
        if generation.cached < generation.length:
            return
        if generation.ready(GRACE_S):
            self._advance([row], logits[None], delivery)
        else:
            generation.cached -= 1

    def _admit(self) -> bool:
        """Give a row to the first in the queue for whom a row and memory are free; False: there is none.

        Who waits until its beginning is computed for another, or until a long prompt is through, lets others pass.
        """
        with self.changed:
            foremost = islice(self.waiting, LOOK_AHEAD if self.batch.active < self.decoder.rows else 1)
            generation = next((one for one in foremost if self._may_begin(one)), None)
            if generation is None:
                return False
            block = self.batch.parked.get(generation)
            needed = generation.length + 1 - (0 if block is None else block.shape[2])
            while not self.batch.has_room(needed):
                if not self._make_way(generation):
                    return False
            free = self.batch.free_tokens - self.batch.prefilling.promised_tokens
            self.waiting.leave(generation)
            generation.admitted_ns = generation.admitted_ns or time.time_ns()
            block = self.batch.parked.pop(generation, None)
        self.batch.prefixes.shrink(max(0, free - needed))
        if block is None:
            self.batch.reuse(generation, self.batch.prefilling.add(generation))
        else:
            row = len(self.batch.running)
            other, held = self.batch.at_rest(row)
            if other:
                self.decoder.copy(row, self.batch.prefilling.move(other), held)
            self.decoder.write(row, block, generation.cached)
            self.batch.running.append(generation)
        return True

    def _may_begin(self, generation: Generation) -> bool:
        if generation in self.batch.parked:
            return True
        if not self.batch.prefilling.takes(generation):
            return False
        return generation.scored or all(
            common_prefix(other.tokens[: other.prefill_tokens], generation.tokens[: generation.length])
            < other.cached + SHORTEST_TOKENS
            for other in self.batch.prefilling
            if other.salt == generation.salt
        )

    def _make_way(self, urgent: Generation) -> bool:
        """Take memory or a row from an answer that can wait, the youngest, if `urgent` cannot; False: there is none.

        An answer that gives up its row alone keeps its keys and values, so that its text is the one it would have
        been: computed again, by other kernels, its last digits would differ.
        """
        if urgent.flexible:
            return False
        wants_row = self.batch.active == self.decoder.rows
        if self.batch.parked and not wants_row:
            self.batch.unpark()
            return True
        rows = [row for row, generation in enumerate(self.batch.running) if generation.flexible]
        if not rows:
            return False
        self._send_back(min(rows, key=lambda row: self.batch.running[row].new_tokens), park=wants_row)
        return True

    def _yield_prefill(self) -> None:
        """A prompt that can wait is not computed before one that cannot."""
        urgent = self.waiting.next
        if urgent is None or urgent.flexible:
            return
        for generation in [one for one in self.batch.prefilling.here if one.flexible]:
            self.batch.leave_prefill(generation)
            generation.forget()
            self._return(generation)

    def _end_complete(self, delivery: Delivery) -> None:
        """Answers whose slow grammar has told meanwhile that nothing may follow, or was to tell it and did not."""
        for row in reversed(range(len(self.batch.running))):
            generation = self.batch.running[row]
            if generation.over:
                self.batch.leave(row)
                delivery.append((generation, generation.end()))

    def _decode_step(self, delivery: Delivery) -> None:
        self._end_complete(delivery)
        if not self.batch.running:
            return
        self._make_room()
        late = not any(generation.ready() for generation in self.batch.running)
        if late and (self.batch.prefilling or not self.batch.running[0].ready(LATE_S)):
            self.batch.beside.wait(LATE_S / 10)
            return
        rows = len(self.batch.running)
        alone = self.batch.running[0] if rows == 1 else None
        if alone and self.decoder.drafts and not alone.replays and self._verify_step(delivery):
            return
        began_s = time.perf_counter()
        tokens = [g.tokens[g.cached] for g in self.batch.running]
        lengths = [g.cached + 1 for g in self.batch.running]
        if (
            alone and self._invariant(alone) and self.decoder.rows > 1
        ):  # one row alone would run in another kernel
            beside = self.batch.prefilling.at(1)
            tokens.append(np.int64(0))
            lengths.append((beside.cached if beside else 0) + 1)
        logits = self.decoder.decode(np.array(tokens, np.int64), np.array(lengths, np.int64))
        self.counters.decode_steps += 1
        self.batch.prefilling.stepped(time.perf_counter() - began_s)
        until_s = time.perf_counter() + GRACE_S
        ready = [g.replays or g.ready(max(0.0, until_s - time.perf_counter())) for g in self.batch.running]
        chosen: list[int] = []
        for row, generation in enumerate(self.batch.running):
            if ready[row]:
                if not generation.replays:
                    chosen.append(row)
                generation.cached += 1
        self._advance(chosen, logits[:rows] if len(chosen) == rows else logits[chosen], delivery)

    def _invariant(self, generation: Generation) -> bool:
        """Whether its bits must not depend on who else is there."""
        return self.batch_invariant or generation.seeded

    def _verify_step(self, delivery: Delivery) -> bool:
        """A step of the one answer that runs, with guesses of what comes after; False: there were none.

        Each position is sampled as in a step of its own, up to the first that was guessed wrong; what is behind it in
        the row is overwritten. Alone, since a step of several answers keeps the cores busy as it is.
        """
        generation = self.batch.running[0]
        guess = generation.guess(self.decoder.drafts)
        if not len(guess) and not self._invariant(generation):
            return False
        tokens = np.append(generation.last_token, guess)
        padded = tokens if len(guess) else np.append(tokens, 0)  # one token alone would run in another kernel
        began_s = time.perf_counter()
        logits = self.decoder.verify(padded, generation.length)[: len(tokens)]
        self.batch.prefilling.stepped(time.perf_counter() - began_s)
        accepted = -1
        for chosen in logits:
            if not generation.ready(GRACE_S):
                break
            generation.cached += 1
            self._advance([0], chosen[None], delivery)
            accepted += 1
            if not self.batch.running or accepted == len(guess) or generation.last_token != guess[accepted]:
                break
        accepted = max(0, accepted)
        generation.draft.settle(len(guess), accepted)
        self.counters.decode_steps += 1
        self.counters.draft_tokens += len(guess)
        self.counters.accepted_draft_tokens += accepted
        return True

    def _advance(self, rows: list[int], logits: np.ndarray, delivery: Delivery) -> None:
        """The next token of the answers in `rows`, from their logits (n, vocab)."""
        pieces = advance([self.batch.running[row] for row in rows], logits, self.softmax)
        self.counters.generated_tokens += len(rows)
        for row, piece in reversed(
            list(zip(rows, pieces, strict=True))
        ):  # the last row takes a free one's place
            if not piece.empty:
                delivery.append((self.batch.running[row], piece))
            if piece.last:
                self.batch.leave(row)

    def _make_room(self) -> None:
        """When the next step would overflow the cache: drop kept prefixes, then send answers back.

        First those that can wait, and of equals the youngest.
        """
        self.batch.prefixes.shrink(max(0, self.batch.free_tokens - len(self.batch.running)))
        while self.batch.parked and self.batch.free_tokens < len(self.batch.running):
            self.batch.unpark()
        while len(self.batch.running) > 1 and self.batch.free_tokens < len(self.batch.running):
            row = max(range(len(self.batch.running)), key=lambda row: (self.batch.running[row].flexible, row))
            self._send_back(row, park=False)

    def _send_back(self, row: int, *, park: bool) -> None:
        """Its row is another's now. Unless parked it computes its tokens again, as far as no prefix of them is kept."""
        generation = self.batch.running[row]
        if park:
            self.batch.parked[generation] = self.decoder.read(row, generation.cached)
        self.batch.leave(row)
        if not park:
            generation.forget()
        self._return(generation)

    def _return(self, generation: Generation) -> None:
        with self.changed:
            self.waiting.return_to(generation)
        self.counters.preemptions += 1

"""The generating backend: requests in, rows of the scheduler, answers out."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from serve.answer_facts import AnswerFacts
from serve.engines import HAND_OVER, LEFT_OPEN, TAKE_OVER
from serve.engines.grammar import header_text
from serve.engines.onnx.answers import DONE, ChatAnswer, CompletionAnswer, join, usage
from serve.engines.onnx.decoding.decoder import Decoder
from serve.engines.onnx.decoding.generation import Generation, Piece
from serve.engines.onnx.decoding.scheduler import Delivery, Scheduler
from serve.engines.onnx.reading import Readers
from serve.engines.onnx.requests import RequestReader
from serve.engines.onnx.responder import Responder
from serve.engines.onnx.sizing import Sizes
from serve.protocol.chat import ChatRequest
from serve.protocol.completions import CompletionRequest
from serve.protocol.parsing import parse
from serve.tracing import Span

Request = TypeVar("Request", ChatRequest, CompletionRequest)


class Mailbox:
    """Pieces of one request's generations, from the scheduler's thread to one coroutine."""

    def __init__(self, generations: list[Generation]) -> None:
        self.generations = generations
        self.index = {generation: index for index, generation in enumerate(generations)}
        self.pieces: deque[tuple[int, Piece]] = deque()
        self.news = asyncio.Event()

    async def take(self) -> list[tuple[int, Piece]]:
        """Wait for news; all (index, piece) that came since the last call. Raises the error of a failed answer."""
        await self.news.wait()
        self.news.clear()
        taken = list(self.pieces)
        self.pieces.clear()
        for _, piece in taken:
            if piece.error:
                raise piece.error
        return taken


class Generating(Protocol):
    """A thread that generates."""

    @property
    def stuck_s(self) -> float: ...

    def is_alive(self) -> bool: ...

    def submit(self, generations: list[Generation]) -> None: ...

    def cancel(self, generation: Generation) -> None: ...

    def leave(self, leaving: bool) -> None: ...


class Answers:
    """From requests to generations, and from their pieces to answers, whole or streamed."""

    def __init__(self, model: str, scheduler: Generating, readers: Readers, stuck_s: float) -> None:
        self.model = model
        self.scheduler = scheduler
        self.readers = readers
        self.stuck_s = stuck_s
        self.boxes: dict[Generation, Mailbox] = {}

    @property
    def broken(self) -> bool:
        """The scheduler's thread has ended, or hangs in a step."""
        return not self.scheduler.is_alive() or self.scheduler.stuck_s > self.stuck_s

    async def _leave(self, leaving: bool, body: bytes, responder: Responder) -> None:
        self.scheduler.leave(leaving)
        await responder.json({"leaving": leaving})

    async def _read(
        self,
        body: bytes,
        responder: Responder,
        kind: type[Request],
        read: Callable[[Request, str], list[Generation]],
    ) -> tuple[Request, list[Generation]]:
        def work() -> tuple[Request, list[Generation]]:
            request = parse(kind, body)
            return request, read(request, responder.salt)

        return await self.readers.read(body, responder, work)

    async def _answer(
        self,
        request: ChatRequest | CompletionRequest,
        answer: ChatAnswer | CompletionAnswer,
        generations: list[Generation],
        responder: Responder,
    ) -> None:
        box = Mailbox(generations)
        self.boxes.update(dict.fromkeys(generations, box))
        responder.on_gone = box.news.set
        responder.usage = lambda: usage(generations, request.n or 1)
        submitted_ns = time.time_ns()
        try:
            self.scheduler.submit(generations)
            if request.stream:
                await self._stream(request, answer, box, responder)
            else:
                await self._whole(request, answer, box, responder)
        finally:
            for generation in generations:
                if self.boxes.pop(generation, None):
                    self.scheduler.cancel(generation)
            if responder.span:
                trace(responder.span, generations, submitted_ns)

    async def _stream(
        self,
        request: ChatRequest | CompletionRequest,
        answer: ChatAnswer | CompletionAnswer,
        box: Mailbox,
        responder: Responder,
    ) -> None:
        opened: set[int] = set()
        unfinished = len(box.generations)
        while unfinished and not responder.gone:
            events: list[bytes] = []
            for index, piece in await box.take():
                if not opened:
                    responder.headers |= told(box.generations, request.n or 1).headers()
                if index not in opened:
                    opened.add(index)
                    events.append(answer.first(index))
                events.extend(answer.events(index, piece))
                unfinished -= piece.last
            if not unfinished:
                if request.include_usage:
                    events.append(answer.usage_event(usage(box.generations, request.n or 1)))
                events.append(DONE)
            if events:
                await responder.event(b"".join(events))
        if not responder.gone:
            await responder.end()

    async def _whole(
        self,
        request: ChatRequest | CompletionRequest,
        answer: ChatAnswer | CompletionAnswer,
        box: Mailbox,
        responder: Responder,
    ) -> None:
        pieces: list[list[Piece]] = [[] for _ in box.generations]
        unfinished = len(box.generations)
        while unfinished:
            taken = await box.take()
            if responder.gone:
                return
            for index, piece in taken:
                pieces[index].append(piece)
                unfinished -= piece.last
        responder.headers |= told(box.generations, request.n or 1).headers()
        choices = [answer.choice(index, join(parts)) for index, parts in enumerate(pieces)]
        await responder.json(answer.body(choices, usage(box.generations, request.n or 1)))

    def _dispatch(self, delivery: Delivery) -> None:
        """On the event loop: hand each piece to the coroutine that waits for it."""
        for generation, piece in delivery:
            box = self.boxes.get(generation)
            if box is not None:
                if piece.last:
                    del self.boxes[generation]
                box.pieces.append((box.index[generation], piece))
                box.news.set()


class GenerateBackend(Answers):
    """One decoder-only model behind /v1/chat/completions and /v1/completions."""

    def __init__(self, bundle: Path, model: str, sizes: Sizes, loop: asyncio.AbstractEventLoop) -> None:
        self.decoder = Decoder(
            bundle,
            rows=sizes.slots,
            threads=sizes.threads,
            context=sizes.context,
            drafts=sizes.speculative_tokens,
        )
        self.reader = RequestReader(
            bundle,
            self.decoder.config,
            self.decoder.context,
            scores=self.decoder.scores,
            most_answers=sizes.queue_limit,
        )
        scheduler = Scheduler(
            self.decoder,
            lambda delivery: loop.call_soon_threadsafe(self._dispatch, delivery),
            kv_tokens=sizes.kv_tokens(self.decoder.kv_bytes_per_token, self.decoder.context),
            prefix_tokens=sizes.prefix_tokens(self.decoder.kv_bytes_per_token),
            prefill_chunk=sizes.prefill_chunk,
            queue_limit=sizes.queue_limit,
            batch_invariant=sizes.batch_invariant,
        )
        super().__init__(model, scheduler, Readers(), sizes.stuck_s)
        self.routes = {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completion,
            HAND_OVER: partial(self._leave, True),
            TAKE_OVER: partial(self._leave, False),
        }
        REGISTRY.register(EngineMetrics(scheduler))
        scheduler.start()

    @property
    def context(self) -> int:
        """Tokens of a prompt and its answer together."""
        return self.decoder.context

    async def chat(self, body: bytes, responder: Responder) -> None:
        """POST /v1/chat/completions."""
        request, generations = await self._read(body, responder, ChatRequest, self.reader.chat)
        answer = ChatAnswer(self.model, self.reader.codec, with_logprobs=bool(request.logprobs))
        if generations[0].left_open:
            responder.headers[LEFT_OPEN] = header_text(generations[0].left_open)
        await self._answer(request, answer, generations, responder)

    async def completion(self, body: bytes, responder: Responder) -> None:
        """POST /v1/completions."""
        request, generations = await self._read(body, responder, CompletionRequest, self.reader.completion)
        answer = CompletionAnswer(self.model, self.reader.codec, with_logprobs=request.logprobs is not None)
        await self._answer(request, answer, generations, responder)


def told(generations: list[Generation], choices: int) -> AnswerFacts:
    """What is known once the prompts are read."""
    counted = usage(generations, choices)
    options = generations[0].sampler.options
    return AnswerFacts(
        prompt_tokens=counted["prompt_tokens"],
        cached_tokens=counted["prompt_tokens_details"]["cached_tokens"],
        temperature=options.temperature,
        top_p=options.top_p,
    )


def trace(span: Span, generations: list[Generation], submitted_ns: int) -> None:
    """Where the time of an answer went; of several answers to one request, the first one's."""
    first, now_ns = generations[0], time.time_ns()
    marks = [submitted_ns, first.admitted_ns or now_ns, first.first_token_ns or now_ns, now_ns]
    for name, start_ns, end_ns in zip(("queue", "prefill", "decode"), marks, marks[1:], strict=False):
        if start_ns < end_ns:
            span.part(name, start_ns, end_ns)
    span.note(
        {
            "gen_ai.usage.input_tokens": first.prompt_tokens,
            "gen_ai.usage.output_tokens": sum(generation.new_tokens for generation in generations),
            "everlearn.reused_tokens": first.reused_tokens,
        }
    )


class EngineMetrics:
    """Prometheus metrics, read from the scheduler when asked."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler

    def collect(self) -> Iterator[Metric]:
        """The metric families."""
        scheduler, counters = self.scheduler, self.scheduler.counters
        gauges = {
            "running": ("answers that hold a row", scheduler.batch.active),
            "waiting": ("requests without a row", len(scheduler.waiting)),
            "rows": ("rows of the decode batch", scheduler.decoder.rows),
            "kv_tokens_used": ("tokens whose keys and values rows hold", scheduler.batch.used_tokens),
            "kv_tokens_limit": ("tokens whose keys and values fit", scheduler.batch.kv_tokens),
            "prefix_tokens": ("tokens kept for reuse", scheduler.batch.prefixes.tokens),
        }
        totals = {
            "prompt_tokens": ("prompt tokens computed", counters.prompt_tokens),
            "reused_tokens": ("prompt tokens found in a cache", counters.reused_tokens),
            "generated_tokens": ("tokens generated", counters.generated_tokens),
            "decode_steps": ("decode steps", counters.decode_steps),
            "draft_tokens": ("tokens guessed", counters.draft_tokens),
            "accepted_draft_tokens": (
                "tokens guessed right, each a step saved",
                counters.accepted_draft_tokens,
            ),
            "preemptions": (
                "answers sent back to the queue: for want of memory, or since others could not wait",
                counters.preemptions,
            ),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"everlearn_engine_{name}", text, value=value)
        for name, (text, value) in totals.items():
            yield CounterMetricFamily(f"everlearn_engine_{name}", text, value=value)

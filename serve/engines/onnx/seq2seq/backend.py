"""The backend of encoder-decoders: /v1/completions, where the prompt is the source and the text its answer."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import Gauge

from everlearn.errors import Unsupported
from serve.engines import HAND_OVER, TAKE_OVER
from serve.engines.context_bound import ContextLengthExceeded
from serve.engines.onnx.answers import CompletionAnswer
from serve.engines.onnx.decoding.generation import Generation
from serve.engines.onnx.generate import Answers
from serve.engines.onnx.reading import Readers
from serve.engines.onnx.requests import CompletionReader
from serve.engines.onnx.responder import Responder
from serve.engines.onnx.seq2seq.model import EncoderDecoder
from serve.engines.onnx.seq2seq.scheduler import GroupScheduler
from serve.engines.onnx.sizing import Sizes
from serve.engines.tokenizer import TextCodec, TextStream, whole
from serve.protocol.completions import CompletionRequest


class SourceCodec(TextCodec):
    """Sources have the tokenizer's own marks, as in training."""

    def encode(self, text: str, param: str = "prompt") -> list[int]:
        """As its base, with T5's ``</s>`` and the like."""
        text = whole(text)
        self.bound.check([text], param)
        self.bound.probe(text, param)
        return self.tokenizer.encode_batch_fast([text], add_special_tokens=True)[0].ids


class AnswerStream(TextStream):
    """Without the space that Unigram tokenizers write before a text's first word."""

    def __init__(self, codec: TextCodec) -> None:
        super().__init__(codec)
        self.begun = False

    def push(self, token: int) -> str:
        """The text that this token completes (often empty)."""
        text = super().push(token)
        if not self.begun and text:
            self.begun = True
            return text.removeprefix(" ")
        return text


class SourceReader(CompletionReader):
    """Requests to generations. A source and an answer have the context each for itself."""

    def __init__(self, bundle: Path, model: EncoderDecoder, *, most_answers: int) -> None:
        codec = SourceCodec(bundle, model.vocab_size, model.context)
        super().__init__(codec, model, model.context, scores=False, most_answers=most_answers)
        self.longest = model.context - len(model.first) + 1
        """Tokens of an answer: the last one is not read."""

    def completion(self, request: CompletionRequest, salt: str = "") -> list[Generation]:
        """One generation per prompt and choice, a prompt's choices together."""
        if request.echo:
            raise Unsupported(
                "the answer of an encoder-decoder does not go on from its prompt: it cannot echo it",
                param="echo",
            )
        return super().completion(request, salt)

    def _new_tokens(self, param: str, prompts: list[list[int]], wanted: int | None) -> int:
        longest = max(len(prompt) for prompt in prompts)
        if longest > self.context:
            raise ContextLengthExceeded(
                f"this model reads {self.context} tokens; the request has {longest} in {param}", param=param
            )
        if wanted is not None and wanted > self.longest:
            raise ContextLengthExceeded(
                f"this model's answers have at most {self.longest} tokens; max_tokens is {wanted}",
                param="max_tokens",
            )
        return self.longest if wanted is None else wanted

    def _generations(self, *arguments: Any, **more: Any) -> list[Generation]:
        generations = super()._generations(*arguments, **more)
        for generation in generations:
            generation.stream = AnswerStream(self.codec)
        return generations


class EncoderDecoderBackend(Answers):
    """One encoder-decoder behind /v1/completions."""

    def __init__(self, bundle: Path, model: str, sizes: Sizes, loop: asyncio.AbstractEventLoop) -> None:
        self.graphs = graphs = EncoderDecoder(bundle, threads=sizes.threads)
        scheduler = GroupScheduler(
            graphs,
            lambda delivery: loop.call_soon_threadsafe(self._dispatch, delivery),
            rows=sizes.slots,
            queue_limit=sizes.queue_limit,
        )
        super().__init__(model, scheduler, Readers(), sizes.stuck_s)
        self.reader = SourceReader(bundle, graphs, most_answers=sizes.queue_limit)
        self.routes = {
            "/v1/completions": self.completion,
            HAND_OVER: partial(self._leave, True),
            TAKE_OVER: partial(self._leave, False),
        }
        Gauge("everlearn_engine_running", "answers that hold a row").set_function(lambda: scheduler.active)
        Gauge("everlearn_engine_waiting", "requests without a row").set_function(
            lambda: len(scheduler.waiting)
        )
        scheduler.start()

    @property
    def context(self) -> int:
        """Tokens of a source, and of an answer."""
        return self.reader.context

    async def completion(self, body: bytes, responder: Responder) -> None:
        """POST /v1/completions."""
        request, generations = await self._read(body, responder, CompletionRequest, self.reader.completion)
        answer = CompletionAnswer(self.model, self.reader.codec, with_logprobs=request.logprobs is not None)
        await self._answer(request, answer, generations, responder)

"""The backend of encoders with heads: labels of texts and tokens, scores of pairs, answers in a text.

What Hugging Face's inference API answers has no room for the usage: ``/models`` answers it beside that, and the gateway
passes on the answer alone.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Gauge

from everlearn.errors import InvalidInput
from serve.engines.onnx.encoders.embed import TEXTS_PER_REQUEST
from serve.engines.onnx.encoders.entities import entities
from serve.engines.onnx.encoders.extraction import Windows, answers, windows_of
from serve.engines.onnx.encoders.model import Cut, Encoded, EncoderModel, Rows
from serve.engines.onnx.reading import Readers
from serve.engines.onnx.responder import Responder
from serve.engines.onnx.sizing import Sizes
from serve.protocol.body import Body
from serve.protocol.parsing import parse
from serve.protocol.predictions import (
    ClassifyRequest,
    PoolingRequest,
    Question,
    RerankRequest,
    ScoreRequest,
    TaskRequest,
)

OUTPUTS = {
    "classify": ("logits",),
    "score": ("logits",),
    "token_classify": ("logits",),
    "question_answer": ("start_logits", "end_logits"),
}
"""The graph's outputs that each task reads."""

MAX_NUMBERS = 1_000_000
"""In an answer of probabilities: about 20 MB of JSON."""
MAX_LABELLED_TOKENS = 100_000
"""Of one request, each of which may be an entity of the answer."""

Request = TypeVar("Request", bound=Body)
Read = TypeVar("Read")


class HeadBackend:
    """One encoder with a head behind the routes of its task."""

    def __init__(self, bundle: Path, task: str, model: str, sizes: Sizes) -> None:
        config = json.loads((bundle / "config.json").read_text())
        self.model, self.task = model, task
        self.labels = [config["id2label"][key] for key in sorted(config.get("id2label", {}), key=int)]
        self.multi_label = config.get("problem_type") == "multi_label_classification"
        self.stuck_s = sizes.stuck_s
        self.encoder = EncoderModel(
            bundle,
            outputs=OUTPUTS[task],
            threads=sizes.threads,
            queue_limit=sizes.queue_limit * TEXTS_PER_REQUEST,
            context=config["max_length"],
            places=task == "token_classify",
        )
        self.readers = Readers()
        self.tells_usage = True
        """Beside Hugging Face's answers, for a gateway; without one, who asked gets the answer alone."""
        offered: dict[str, dict[str, Callable[[bytes, Responder], Awaitable[None]]]] = {
            "classify": {"/classify": self.classify, "/models": self.labels_of_texts},
            "score": {"/score": self.score, "/rerank": self.rerank},
            "token_classify": {"/pooling": self.pooling, "/models": self.entities},
            "question_answer": {"/models": self.question},
        }
        self.routes = offered[task]
        Gauge("everlearn_engine_running", "texts being read").set_function(lambda: self.encoder.active)
        Gauge("everlearn_engine_waiting", "texts in the queue").set_function(
            lambda: len(self.encoder.pending)
        )

    @property
    def context(self) -> int:
        """Tokens of one text, or of a pair."""
        return self.encoder.context

    @property
    def broken(self) -> bool:
        """A batch is under way that does not end."""
        return self.encoder.stuck_s > self.stuck_s

    async def classify(self, body: bytes, responder: Responder) -> None:
        """POST /classify."""

        def read(request: ClassifyRequest) -> list[Encoded]:
            return self.encoder.encode(as_list(request.input), cut=Cut(request.truncate_prompt_tokens))

        _, texts = await self._read(body, responder, ClassifyRequest, read)
        counted, computed = await self._compute(texts, responder)
        data = [
            {
                "index": index,
                "label": self.labels[int(probabilities.argmax())],
                "probs": probabilities.tolist(),
                "num_classes": len(self.labels),
            }
            for index, probabilities in enumerate(self._probabilities(logits) for (logits,) in computed)
        ]
        await responder.json(self._list("classify", data, counted))

    async def labels_of_texts(self, body: bytes, responder: Responder) -> None:
        """POST /models: Hugging Face's text classification."""

        def read(request: TaskRequest) -> list[Encoded]:
            return self.encoder.encode(texts_in(request), "inputs")

        request, texts = await self._read(body, responder, TaskRequest, read)
        counted, computed = await self._compute(texts, responder)
        function = request.parameters and request.parameters.function_to_apply
        top_k = (request.parameters and request.parameters.top_k) or len(self.labels)
        said: list[list[dict[str, Any]]] = []
        for (logits,) in computed:
            scores = self._probabilities(logits, function)
            order = np.argsort(-scores, kind="stable")[:top_k]
            said.append([{"label": self.labels[at], "score": float(scores[at])} for at in order])
        await self._answer(said, counted, responder)

    async def score(self, body: bytes, responder: Responder) -> None:
        """POST /score."""

        def read(request: ScoreRequest) -> list[Encoded]:
            return self.encoder.encode(request.pairs, "text_2", Cut(request.truncate_prompt_tokens))

        _, pairs = await self._read(body, responder, ScoreRequest, read)
        counted, computed = await self._compute(pairs, responder)
        data = [
            {"index": index, "object": "score", "score": relevance(rows)}
            for index, rows in enumerate(computed)
        ]
        await responder.json(self._list("score", data, counted))

    async def rerank(self, body: bytes, responder: Responder) -> None:
        """POST /rerank: the most relevant first, and of equals the one that was named first."""

        def read(request: RerankRequest) -> list[Encoded]:
            cut = Cut(request.truncate_prompt_tokens, request.max_tokens_per_doc)
            return self.encoder.encode([(request.query, one) for one in request.documents], "documents", cut)

        request, pairs = await self._read(body, responder, RerankRequest, read)
        counted, computed = await self._compute(pairs, responder)
        scores = [relevance(rows) for rows in computed]
        order = sorted(range(len(scores)), key=lambda at: -scores[at])[: request.top_n or len(scores)]
        results: list[dict[str, Any]] = []
        for at in order:
            document = (
                {} if request.return_documents is False else {"document": {"text": request.documents[at]}}
            )
            results.append({"index": at, **document, "relevance_score": scores[at]})
        identity = f"rerank-{secrets.token_hex(12)}"
        await responder.json({"id": identity, "model": self.model, "usage": counted, "results": results})

    async def pooling(self, body: bytes, responder: Responder) -> None:
        """POST /pooling: of each token, the special ones included, the probabilities of the labels."""

        def read(request: PoolingRequest) -> list[Encoded]:
            texts = self.encoder.encode(as_list(request.input), cut=Cut(request.truncate_prompt_tokens))
            refuse_tokens(texts, MAX_NUMBERS // len(self.labels), "input")
            return texts

        def said() -> list[dict[str, Any]]:
            return [
                {"index": index, "object": "pooling", "data": softmax(logits).tolist()}
                for index, (logits,) in enumerate(computed)
            ]

        _, texts = await self._read(body, responder, PoolingRequest, read)
        counted, computed = await self._compute(texts, responder)
        await responder.json(self._list("pool", await asyncio.to_thread(said), counted))

    async def entities(self, body: bytes, responder: Responder) -> None:
        """POST /models: Hugging Face's token classification."""

        def read(request: TaskRequest) -> list[Encoded]:
            texts = self.encoder.encode(texts_in(request), "inputs")
            refuse_tokens(texts, MAX_LABELLED_TOKENS, "inputs")
            return texts

        def said() -> list[list[dict[str, Any]]]:
            return [
                entities(text, encoded, softmax(logits), self.labels, ignored, simple=simple)
                for text, encoded, (logits,) in zip(texts_in(request), texts, computed, strict=True)
            ]

        request, texts = await self._read(body, responder, TaskRequest, read)
        counted, computed = await self._compute(texts, responder)
        parameters = request.parameters
        simple = (parameters and parameters.aggregation_strategy) != "none"
        ignored = parameters.ignore_labels if parameters and parameters.ignore_labels is not None else ["O"]
        found = await asyncio.to_thread(said)
        answer = found if isinstance(request.inputs, list) else found[0]
        await self._answer(answer, counted, responder)

    async def question(self, body: bytes, responder: Responder) -> None:
        """POST /models: Hugging Face's extractive question answering; a long context is read in windows."""

        def read(request: TaskRequest) -> Windows:
            if not isinstance(request.inputs, Question):
                raise InvalidInput(
                    "This model finds answers in a text: inputs is an object with question and context.",
                    param="inputs",
                )
            return windows_of(self.encoder, request.inputs.question, request.inputs.context)

        request, windows = await self._read(body, responder, TaskRequest, read)
        counted, computed = await self._compute(windows.texts, responder)
        parameters = request.parameters
        top_k = (parameters and parameters.top_k) or 1
        longest = parameters and parameters.max_answer_len
        found = await asyncio.to_thread(answers, windows, computed, top_k, longest)
        await self._answer(found if top_k > 1 else found[0], counted, responder)

    def _probabilities(self, logits: NDArray[np.float32], function: str | None = None) -> NDArray[np.float32]:
        """Of a text's labels: (labels,)."""
        if function == "none":
            return logits
        alone = self.multi_label or len(self.labels) == 1
        return sigmoid(logits) if (function == "sigmoid" if function else alone) else softmax(logits)

    async def _read(
        self, body: bytes, responder: Responder, kind: type[Request], read: Callable[[Request], Read]
    ) -> tuple[Request, Read]:
        def work() -> tuple[Request, Read]:
            request = parse(kind, body)
            return request, read(request)

        return await self.readers.read(body, responder, work)

    async def _compute(
        self, texts: Sequence[Encoded], responder: Responder
    ) -> tuple[dict[str, Any], list[Rows]]:
        """What was counted, and what the graph says of each text; nothing more of it once the client has left."""
        tokens = sum(len(one.ids) for one in texts)
        counted = {"prompt_tokens": tokens, "total_tokens": tokens}
        responder.usage = lambda: counted
        task = asyncio.ensure_future(self.encoder.compute(texts))
        responder.on_gone = task.cancel
        return counted, await task

    async def _answer(self, answer: Any, counted: dict[str, Any], responder: Responder) -> None:
        await responder.json({"answer": answer, "usage": counted} if self.tells_usage else answer)

    def _list(self, prefix: str, data: list[dict[str, Any]], counted: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": "list",
            "created": int(time.time()),
            "model": self.model,
            "data": data,
            "usage": counted,
        }


def refuse_tokens(texts: Sequence[Encoded], most: int, param: str) -> None:
    """Raises InvalidInput for more than ``most`` tokens in all, of each of which the answer says something."""
    tokens = sum(len(one.ids) for one in texts)
    if tokens > most:
        raise InvalidInput(
            f"{param} has {tokens} tokens, and an answer speaks of at most {most}: send fewer texts",
            param=param,
        )


def as_list(texts: str | list[str]) -> list[str]:
    return texts if isinstance(texts, list) else [texts]


def texts_in(request: TaskRequest) -> list[str]:
    """Raises InvalidInput where there is a question instead."""
    if isinstance(request.inputs, Question):
        raise InvalidInput("This model labels texts: inputs is a text, or a list of them.", param="inputs")
    return as_list(request.inputs)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities on the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return 1 / (1 + np.exp(-logits))


def relevance(rows: Rows) -> float:
    """Of a pair: between 0 and 1."""
    return float(sigmoid(rows[0][0]))

"""The embedding backend: /v1/embeddings over an encoder."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Gauge

from everlearn.errors import Unsupported
from serve.engines.onnx.encoders.model import Cut, Encoded, EncoderModel
from serve.engines.onnx.reading import Readers
from serve.engines.onnx.responder import Responder
from serve.engines.onnx.sizing import Sizes
from serve.protocol.embeddings import EmbeddingRequest, ImageInput
from serve.protocol.parsing import parse

TEXTS_PER_REQUEST = 64
"""So many texts wait for each request that the queue takes."""


class EmbedBackend:
    """One encoder behind /v1/embeddings."""

    def __init__(self, bundle: Path, model: str, sizes: Sizes, context: int | None = None) -> None:
        self.model = model
        self.stuck_s = sizes.stuck_s
        self.encoder = EncoderModel(
            bundle,
            outputs=("sentence_embedding",),
            threads=sizes.threads,
            queue_limit=sizes.queue_limit * TEXTS_PER_REQUEST,
            context=context,
        )
        self.readers = Readers()
        self.routes = {"/v1/embeddings": self.embeddings}
        Gauge("everlearn_engine_running", "texts being embedded").set_function(lambda: self.encoder.active)
        Gauge("everlearn_engine_waiting", "texts in the queue").set_function(
            lambda: len(self.encoder.pending)
        )

    @property
    def context(self) -> int:
        """Tokens of one text."""
        return self.encoder.context

    @property
    def broken(self) -> bool:
        """A batch is under way that does not end."""
        return self.encoder.stuck_s > self.stuck_s

    async def embeddings(self, body: bytes, responder: Responder) -> None:
        """POST /v1/embeddings."""
        request, encoded = await self.readers.read(body, responder, partial(self._read, body))
        tokens = sum(len(one.ids) for one in encoded)
        counted = {"prompt_tokens": tokens, "total_tokens": tokens}
        responder.usage = lambda: counted
        task = asyncio.ensure_future(self.encoder.compute(encoded))
        responder.on_gone = task.cancel
        vectors = [vector for (vector,) in await task]
        await responder.json({**embeddings_of(request, vectors), "model": self.model, "usage": counted})

    def _read(self, body: bytes) -> tuple[EmbeddingRequest, list[Encoded]]:
        request = parse(EmbeddingRequest, body)
        return request, self.encoder.encode(texts_of(request), cut=Cut(request.truncate_prompt_tokens))


def texts_of(request: EmbeddingRequest) -> list[str]:
    """The texts among the inputs. Raises Unsupported for token ids."""
    texts = [one for one in request.inputs if not isinstance(one, ImageInput)]
    if not all(isinstance(text, str) for text in texts):
        raise Unsupported("input must be text; this model takes no token ids", param="input")
    return texts  # type: ignore[return-value]


def embeddings_of(request: EmbeddingRequest, vectors: Iterable[NDArray[np.float32]]) -> dict[str, Any]:
    """The answer's list; vectors: (dim,) each, in the order of the inputs."""
    as_base64 = request.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": index, "embedding": written(vector, as_base64)}
        for index, vector in enumerate(vectors)
    ]
    return {"object": "list", "data": data}


def written(vector: NDArray[np.float32], as_base64: bool) -> Any:
    """A vector (dim,) as numbers, or as the base64 of its little-endian float32 bytes."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if as_base64 else vector.tolist()

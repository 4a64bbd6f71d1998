"""The backend of models of images and texts (CLIP): /v1/embeddings, with both in one space."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from prometheus_client import Gauge

from everlearn.errors import RateLimited
from serve.engines.onnx.encoders.embed import TEXTS_PER_REQUEST, embeddings_of, texts_of
from serve.engines.onnx.encoders.images import ImageModel, contents_of, decoded
from serve.engines.onnx.encoders.model import Cut, Encoded, EncoderModel
from serve.engines.onnx.reading import Readers
from serve.engines.onnx.responder import Responder
from serve.engines.onnx.sizing import Sizes
from serve.protocol.embeddings import EmbeddingRequest, ImageInput
from serve.protocol.parsing import parse

GRAPH, OUTPUT = "text_model.onnx", "text_embeds"

Contents = list[tuple[str, bytes]]
"""Images that are not decoded yet, each with its name in the request."""


class ImageTextBackend:
    """Two towers behind /v1/embeddings."""

    def __init__(self, bundle: Path, model: str, sizes: Sizes) -> None:
        config = json.loads((bundle / "config.json").read_bytes())
        self.model, self.stuck_s = model, sizes.stuck_s
        self.queue_limit = sizes.queue_limit
        limit = sizes.queue_limit * TEXTS_PER_REQUEST
        self.texts = EncoderModel(
            bundle,
            graph=GRAPH,
            outputs=(OUTPUT,),
            threads=sizes.threads,
            queue_limit=limit,
            context=config["max_length"],
        )
        self.images = ImageModel(bundle, threads=sizes.threads, queue_limit=limit)
        self.readers = Readers()
        self.decoder = ThreadPoolExecutor(1, "decode")  # an image may take a gigabyte while it is decoded
        self.decoding = 0
        self.routes = {"/v1/embeddings": self.embeddings}
        both = (self.texts, self.images)
        Gauge("everlearn_engine_running", "texts and images being embedded").set_function(
            lambda: sum(one.active for one in both)
        )
        Gauge("everlearn_engine_waiting", "texts and images in the queue").set_function(
            lambda: sum(len(one.pending) for one in both)
        )

    @property
    def context(self) -> int:
        """Tokens of one text."""
        return self.texts.context

    @property
    def broken(self) -> bool:
        """A batch is under way that does not end."""
        return max(self.texts.stuck_s, self.images.stuck_s) > self.stuck_s

    async def embeddings(self, body: bytes, responder: Responder) -> None:
        """POST /v1/embeddings."""
        request, texts, contents = await self.readers.read(body, responder, partial(self._read, body))
        images = await self._decode(contents, responder) if contents else []
        tokens = sum(len(one.ids) for one in texts) + self.images.tokens * len(images)
        counted = {"prompt_tokens": tokens, "total_tokens": tokens}
        responder.usage = lambda: counted
        both = asyncio.gather(self.texts.compute(texts), self.images.compute(images))
        responder.on_gone = both.cancel
        computed = await both
        said, shown = (vector for (vector,) in computed[0]), iter(computed[1])
        vectors = [next(shown if isinstance(one, ImageInput) else said) for one in request.inputs]
        await responder.json({**embeddings_of(request, vectors), "model": self.model, "usage": counted})

    def _read(self, body: bytes) -> tuple[EmbeddingRequest, list[Encoded], Contents]:
        request = parse(EmbeddingRequest, body)
        images = [
            ("messages[0].content[0].image_url.url" if request.messages else f"input[{at}].image", one.image)
            for at, one in enumerate(request.inputs)
            if isinstance(one, ImageInput)
        ]
        texts = texts_of(request)
        cut = Cut(request.truncate_prompt_tokens)
        return request, self.texts.encode(texts, cut=cut) if texts else [], contents_of(images)

    async def _decode(self, contents: Contents, responder: Responder) -> list:
        """One request after the other, so that no two images are large in memory at once."""
        if self.decoding >= self.queue_limit:
            raise RateLimited("too many requests wait for their images to be decoded", retry_after_s=1)
        decoding = asyncio.get_running_loop().run_in_executor(
            self.decoder, decoded, contents, self.images.size
        )
        responder.on_gone = lambda: decoding.cancel() and None
        self.decoding += 1
        try:
            return await decoding
        finally:
            self.decoding -= 1

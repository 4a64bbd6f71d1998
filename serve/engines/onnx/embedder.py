"""Text embeddings from an encoder in ONNX, with dynamic batching."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from everlearn.cpu_features import make_exact
from everlearn.errors import Corrupt, InvalidInput, RateLimited
from serve.engines.context_bound import Bound, ContextLengthExceeded
from serve.engines.onnx.session import open_session
from serve.engines.tokenizer import whole

BATCH_TOKENS = 4096
"""Padded size of one batch: large enough to fill the cores, small enough to stay in the caches."""


@dataclass
class Pending:
    """One text on its way. ids: (n,)."""

    ids: list[int]
    result: asyncio.Future[NDArray[np.float32]]


class Embedder:
    """One encoder. Lives on one event loop; the model runs in a thread.

    ``context``: tokens of one text; None: as many as its config.json says that it has positions for.
    """

    def __init__(self, bundle: Path, *, threads: int, queue_limit: int, context: int | None = None) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        make_exact(options)
        self.session = open_session(bundle / "model.onnx", bundle, options)
        self.inputs = {one.name for one in self.session.get_inputs()}
        self.output = self.session.get_outputs()[0].name
        if self.output != "sentence_embedding":
            raise Corrupt(f"{bundle.name}: the graph's first output is {self.output}, not sentence_embedding")
        path = bundle / "tokenizer.json"
        self.tokenizer = Tokenizer.from_file(str(path))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.context = context or int(
            json.loads((bundle / "config.json").read_text())["max_position_embeddings"]
        )
        definition = json.loads(path.read_bytes())
        longest = max(len(token.encode()) for token in self.tokenizer.get_vocab())
        self.bound = Bound(self.tokenizer, definition, longest, self.context)
        self.queue_limit = queue_limit
        self.pending: deque[Pending] = deque()
        self.active = 0
        self.beat = 0.0
        self.worker: asyncio.Task[None] | None = None

    @property
    def stuck_s(self) -> float:
        """How long the present batch has taken."""
        return time.monotonic() - self.beat if self.active else 0.0

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids with the encoder's own special tokens; raises InvalidInput for an empty or too long text."""
        texts = [whole(text) for text in texts]
        for index, text in enumerate(texts):
            if not text:
                raise InvalidInput(f"input[{index}] is empty", param="input")
            self.bound.check([text], f"input[{index}]")
            self.bound.probe(text, f"input[{index}]")
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]
        for index, ids in enumerate(encoded):
            if len(ids) > self.context:
                raise ContextLengthExceeded(
                    f"this model's context is {self.context} tokens; input[{index}] has {len(ids)}",
                    param="input",
                )
        return encoded

    async def embed(self, encoded: list[list[int]]) -> NDArray[np.float32]:
        """(texts, dim), rows of length 1. Texts of concurrent requests share batches."""
        if len(self.pending) + len(encoded) > self.queue_limit and self.pending:
            raise RateLimited("the embedding queue is full", retry_after_s=1)
        loop = asyncio.get_running_loop()
        mine = [Pending(ids, loop.create_future()) for ids in encoded]
        self.pending.extend(sorted(mine, key=lambda one: len(one.ids)))  # like lengths pad little
        if self.worker is None or self.worker.done():
            self.worker = loop.create_task(self._work())
        try:
            return np.stack(await asyncio.gather(*(one.result for one in mine)))
        finally:
            for one in mine:
                one.result.cancel()

    async def _work(self) -> None:
        while self.pending:
            batch = self._next_batch()
            if not batch:
                continue
            self.active, self.beat = len(batch), time.monotonic()
            try:
                vectors = await asyncio.to_thread(self._run, [one.ids for one in batch])
            except Exception as error:  # noqa: BLE001 (it becomes the answer of each request in the batch)
                for one in batch:
                    if not one.result.done():
                        one.result.set_exception(error)
            else:
                for one, vector in zip(batch, vectors, strict=True):
                    if not one.result.done():
                        one.result.set_result(vector)
            finally:
                self.active = 0

    def _next_batch(self) -> list[Pending]:
        """The next texts, in order, as many as fit one padded batch."""
        batch: list[Pending] = []
        longest = 0
        while self.pending:
            longest = max(longest, len(self.pending[0].ids))
            if batch and (len(batch) + 1) * longest > BATCH_TOKENS:
                break
            one = self.pending.popleft()
            if not one.result.done():
                batch.append(one)
        return batch

    def _run(self, batch: list[list[int]]) -> NDArray[np.float32]:
        """Pad to (batch, longest) and run."""
        shape = (len(batch), max(map(len, batch)))
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros(shape, np.int64)}
        return self.session.run([self.output], {k: v for k, v in feeds.items() if k in self.inputs})[0]

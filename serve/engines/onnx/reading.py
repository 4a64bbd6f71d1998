"""The threads that read requests: parse, render, tokenize and compile, away from the loop that writes streams.

A request waits only for others of its size, so that none waits for a book to be tokenized; and at most one of each
size is read at a time, so that reading leaves the cores to answering. Its threads have the low priority of the loop
that starts them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serve.engines.onnx.responder import Responder

TINY_BYTES = 2 * 1024
"""Up to here a request is read at once, where it is: handing it to a thread would take as long."""

SIZES_BYTES = (16 * 1024, 256 * 1024)
"""Borders between requests that wait for each other."""

GRAMMARS = (b'"response_format"', b'"tools"')
"""Bodies with one of these may compile a grammar, which takes as long as it takes; they wait for each other."""

Result = TypeVar("Result")


class Readers:
    """The threads of one engine."""

    def __init__(self) -> None:
        self._lanes = [ThreadPoolExecutor(1, f"read-{size}") for size in (*SIZES_BYTES, "more")]
        self._grammars = ThreadPoolExecutor(2, "read-grammar")

    async def read(self, body: bytes, responder: Responder, work: Callable[[], Result]) -> Result:
        """What `work` makes of `body`. A client that leaves while it waits is not read at all."""
        grammar = any(name in body for name in GRAMMARS)
        if len(body) <= TINY_BYTES and not grammar:
            return work()
        lane = self._grammars if grammar else self._lanes[sum(len(body) > size for size in SIZES_BYTES)]
        reading = asyncio.get_running_loop().run_in_executor(lane, work)
        responder.on_gone = lambda: reading.cancel() and None
        return await reading

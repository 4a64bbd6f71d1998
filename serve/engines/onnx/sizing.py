"""Size the engine for this machine: threads, rows and memory."""

from __future__ import annotations

import os

import psutil
from pydantic import BaseModel

from everlearn.memory import within_container
from everlearn.settings import Settings

KV_SHARE = 0.4
"""Share of the memory free at the start that keys and values may take."""

PREFIX_BYTES = 256 * 1024**2
"""Keys and values kept for reuse after their answers ended."""

SMALLEST_CHUNK_TOKENS = 4
"""A chunk of one token would run in another kernel, and give other bits, than its neighbours."""


class Sizes(BaseModel):
    """The engine's limits; None in the settings is decided here."""

    slots: int
    threads: int
    context: int | None
    kv_tokens_set: int | None
    prefill_chunk: int
    queue_limit: int
    batch_invariant: bool
    speculative_tokens: int
    stuck_s: float = 120
    prefix_bytes: int = PREFIX_BYTES

    @classmethod
    def of(cls, settings: Settings) -> Sizes:
        """From the settings and the cores this process may use."""
        onnx = settings.onnx
        return cls(
            slots=onnx.slots,
            threads=onnx.threads or usable_cores(),
            context=onnx.context,
            kv_tokens_set=onnx.kv_tokens,
            prefill_chunk=max(SMALLEST_CHUNK_TOKENS, onnx.prefill_chunk),
            queue_limit=settings.serve.queue_limit,
            batch_invariant=onnx.batch_invariant,
            speculative_tokens=onnx.speculative_tokens,
            stuck_s=onnx.stuck_s,
        )

    def kv_tokens(self, bytes_per_token: int, context: int) -> int:
        """Tokens whose keys and values fit: as set, or a share of the free memory, at least one context."""
        if self.kv_tokens_set is not None:
            return self.kv_tokens_set
        fitting = int(within_container(psutil.virtual_memory().available) * KV_SHARE) // bytes_per_token
        return max(context, min(fitting, self.slots * context))

    def prefix_tokens(self, bytes_per_token: int) -> int:
        """Tokens kept for reuse."""
        return self.prefix_bytes // bytes_per_token


def usable_cores() -> int:
    """Cores that the scheduler lets this process run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

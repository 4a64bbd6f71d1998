"""An engine's process: the backend of its model, its HTTP server, and how it starts."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from everlearn.errors import EverlearnError, Unsupported
from everlearn.settings import Settings
from serve.bounded_http import BoundedHttp
from serve.engines.onnx.encoders.embed import EmbedBackend
from serve.engines.onnx.encoders.heads import OUTPUTS, HeadBackend
from serve.engines.onnx.encoders.image_text import ImageTextBackend
from serve.engines.onnx.generate import GenerateBackend
from serve.engines.onnx.http import Backend
from serve.engines.onnx.priority import let_steps_go_first
from serve.engines.onnx.seq2seq.backend import EncoderDecoderBackend
from serve.engines.onnx.sizing import Sizes
from serve.engines.onnx.tokens import token_routes
from serve.engines.parent import end_with_parent

SWITCH_INTERVAL_S = 0.0002
"""How long the thread that writes streams may keep the interpreter from the one that computes; Python's is 5 ms."""


def run(serving: Coroutine[Any, Any, None]) -> None:
    """Serve until SIGTERM or until the parent is gone; an error is one line, and the exit code."""
    end_with_parent()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # on the thread that asks, whose priority is low
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serving)
    except EverlearnError as error:
        print(error.message, file=sys.stderr)
        sys.exit(error.exit_code)


def open_backend(
    folder: Path, task: str, model: str, sizes: Sizes, encoder_context: int | None = None
) -> Backend:
    """The backend of the task; it works from here on, on threads of its own.

    ``encoder_context``: tokens of one text, where no config.json says them.
    """
    backend: Backend
    if task == "embed":
        backend = EmbedBackend(folder, model, sizes, encoder_context)
    elif task in OUTPUTS:
        backend = HeadBackend(folder, task, model, sizes)
    elif task == "image_text":
        backend = ImageTextBackend(folder, model, sizes)
    elif task == "text2text":
        backend = EncoderDecoderBackend(folder, model, sizes, asyncio.get_running_loop())
    elif task != "generate":
        served = ", ".join(("generate", "embed", "text2text", "image_text", *OUTPUTS))
        raise Unsupported(f"{model} is for task {task}; the ONNX engine serves the tasks {served}")
    else:
        backend = GenerateBackend(folder, model, sizes, asyncio.get_running_loop())
        backend.routes |= token_routes(backend.reader, backend.readers)
    let_steps_go_first()
    return backend


def server_config(application: Any, settings: Settings, **where: Any) -> uvicorn.Config:
    """uvicorn's configuration; ``where`` it listens."""
    return uvicorn.Config(
        application,
        http=BoundedHttp,
        ws="none",
        log_level="warning",
        lifespan="off",
        access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.serve.drain_timeout_s)),
        timeout_keep_alive=75,
        **where,
    )

"""`python -m serve.engines.onnx --bundle DIR --model NAME --uds PATH`: one model as an OpenAI-speaking process."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
from pathlib import Path

import uvicorn
import uvloop

from everlearn.bundles.bundle import open_bundle
from everlearn.errors import EverlearnError
from everlearn.logs import configure_logging
from everlearn.settings import load_settings
from serve.bounded_http import BoundedHttp
from serve.engines.onnx.embed import EmbedBackend
from serve.engines.onnx.generate import GenerateBackend
from serve.engines.onnx.http import Application, Backend
from serve.engines.onnx.priority import let_steps_go_first
from serve.engines.onnx.sizing import Sizes
from serve.engines.onnx.tokens import token_routes
from serve.engines.parent import end_with_parent
from serve.tracing import open_tracer

SWITCH_INTERVAL_S = 0.0002
"""How long the thread that writes streams may keep the interpreter from the one that computes; Python's is 5 ms."""


def main() -> None:
    """Load the bundle, then serve until SIGTERM or until the parent is gone."""
    parser = argparse.ArgumentParser(prog="serve.engines.onnx")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--version", type=int, default=0)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--uds", type=Path)
    where.add_argument("--port", type=int)
    arguments = parser.parse_args()
    end_with_parent()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # on the thread that asks, whose priority is low
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(arguments))
    except EverlearnError as error:
        print(error.message, file=sys.stderr)
        sys.exit(error.exit_code)


async def serve(arguments: argparse.Namespace) -> None:
    """Run until uvicorn is told to stop."""
    settings = load_settings()
    configure_logging(settings.log_level)
    sizes = Sizes.of(settings)
    bundle = open_bundle(arguments.bundle)
    backend: Backend
    if bundle.manifest.task == "embed":
        backend = EmbedBackend(bundle.path, arguments.model, sizes)
    else:
        backend = GenerateBackend(bundle.path, arguments.model, sizes, asyncio.get_running_loop())
        backend.routes |= token_routes(backend.reader, backend.readers)
    let_steps_go_first()
    if arguments.uds:
        leave_private_socket(arguments.uds)
    config = uvicorn.Config(
        Application(arguments.model, backend, open_tracer("engine")),
        uds=str(arguments.uds) if arguments.uds else None,
        host="127.0.0.1",
        port=arguments.port or 0,
        http=BoundedHttp,
        ws="none",
        log_level="warning",
        lifespan="off",
        access_log=False,
        timeout_graceful_shutdown=max(1, round(settings.serve.drain_timeout_s)),
        timeout_keep_alive=75,
    )
    await uvicorn.Server(config).serve()


def leave_private_socket(path: Path) -> None:
    """A socket nobody listens at: uvicorn puts its own there, and takes over the permissions instead of 0666."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    path.chmod(0o600)


if __name__ == "__main__":
    main()

"""`python -m serve.engines.onnx --bundle DIR --model NAME --uds PATH`: one model as an OpenAI-speaking process."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

import uvicorn

from everlearn.bundles.bundle import open_bundle
from everlearn.logs import configure_logging
from everlearn.settings import load_settings
from serve.engines.onnx.http import Application
from serve.engines.onnx.server import open_backend, run, server_config
from serve.engines.onnx.sizing import Sizes
from serve.tracing import open_tracer


def main() -> None:
    """Load the bundle, then serve until SIGTERM or until the parent is gone."""
    parser = argparse.ArgumentParser(prog="serve.engines.onnx")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--version", type=int, default=0)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--uds", type=Path)
    where.add_argument("--port", type=int)
    run(serve(parser.parse_args()))


async def serve(arguments: argparse.Namespace) -> None:
    """Run until uvicorn is told to stop."""
    settings = load_settings()
    configure_logging(settings.log_level)
    bundle = open_bundle(arguments.bundle)
    backend = open_backend(bundle.path, bundle.manifest.task, arguments.model, Sizes.of(settings))
    if arguments.uds:
        leave_private_socket(arguments.uds)
    config = server_config(
        Application(arguments.model, backend, open_tracer("engine")),
        settings,
        uds=str(arguments.uds) if arguments.uds else None,
        host="127.0.0.1",
        port=arguments.port or 0,
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

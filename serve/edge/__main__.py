"""`python -m serve.edge --folder DIR --fd N --ready-fd N`: an edge folder on a socket that listens already."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import time
from pathlib import Path

import structlog
import uvicorn

from everlearn.logs import configure_logging
from everlearn.memory import peak_bytes
from everlearn.settings import Settings, load_settings
from serve.edge.door import Door
from serve.edge.folder import check_probes, read_edge_folder
from serve.edge.paths import offer_paths
from serve.engines.onnx.http import Application
from serve.engines.onnx.server import open_backend, run, server_config
from serve.engines.onnx.sizing import Sizes

KEY_VARIABLE = "EVERLEARN_API_KEY"
ROWS = 4
"""Answers at once, unless the settings say how many: a device has few users and little memory."""
PREFIX_BYTES = 32 * 1024**2
LINGER_S = 0.5
"""How long a server that no longer accepts still waits for requests on the connections that it has."""

log = structlog.get_logger()


class LingeringServer(uvicorn.Server):
    """Reads the requests of connections that it has accepted before it ends."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await asyncio.sleep(LINGER_S)
        await super().shutdown(sockets)


def main() -> None:
    """Load the folder, then serve until SIGTERM or until the parent is gone."""
    parser = argparse.ArgumentParser(prog="serve.edge")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    run(serve(parser.parse_args()))


async def serve(arguments: argparse.Namespace) -> None:
    """Run until uvicorn is told to stop."""
    started = time.monotonic()
    settings = load_settings()
    configure_logging(settings.log_level)
    folder = read_edge_folder(arguments.folder)
    sizes = device_sizes(settings, folder.graph.context)
    backend = open_backend(arguments.folder, folder.task, folder.model, sizes, folder.graph.context)
    offer_paths(backend, folder.model)
    worst = await check_probes(arguments.folder, folder, backend)
    application = Door(Application(folder.model, backend), os.environ.pop(KEY_VARIABLE, None))
    server = LingeringServer(server_config(application, settings))
    serving = asyncio.create_task(server.serve([socket.socket(fileno=arguments.fd)]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    log.info(
        "serving",
        model=f"{folder.model}@{folder.version}",
        form=folder.form,
        threads=sizes.threads,
        context_tokens=backend.context,
        memory_mb=round(peak_bytes() / 1e6),
        probes_differ_by=round(worst, 5),
        seconds=round(time.monotonic() - started, 1),
    )
    os.write(arguments.ready_fd, b"1")
    os.close(arguments.ready_fd)
    await serving


def device_sizes(settings: Settings, context: int) -> Sizes:
    """As the settings say, in less memory where they say nothing."""
    sizes = Sizes.of(settings)
    rows = settings.onnx.slots if "slots" in settings.onnx.model_fields_set else ROWS
    return sizes.model_copy(
        update={
            "slots": rows,
            "prefix_bytes": PREFIX_BYTES,
            "context": min(sizes.context or context, context),
        }
    )


if __name__ == "__main__":
    main()

"""`python -m serve.gateway`: serve with the settings of this environment."""

import argparse
import gc
import sys
from collections.abc import Callable
from pathlib import Path


def main() -> int:
    """Serve until stopped; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve.gateway", description="Serve OpenAI's API.")
    parser.add_argument("--parent-pipe", action="store_true", help="exit when standard input ends")
    parser.add_argument("--fd", type=int, help="accept from this inherited socket instead of one of its own")
    parser.add_argument("--uds", type=Path, help="also answer GET /health here")
    arguments = parser.parse_args()
    gc.disable()  # importing makes a million objects and no garbage: collecting takes a third of the start
    from everlearn.errors import EverlearnError
    from everlearn.privacy import keep_private

    keep_private()
    try:
        run = prepare(arguments.parent_pipe, arguments.fd, arguments.uds)
    except EverlearnError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    gc.collect()
    gc.freeze()  # what lives now lives to the end: later collections, which delay tokens, leave it out
    gc.enable()
    return run()


def prepare(parent_pipe: bool, fd: int | None, uds: Path | None) -> Callable[[], int]:
    """Import and build everything; returns what serves."""
    import uvloop

    from everlearn.settings import load_settings
    from serve.gateway.app import create_app
    from serve.gateway.http.logs import configure
    from serve.gateway.http.server import build_server, serve

    settings = load_settings()
    configure(settings.log_level)
    server = build_server(create_app(settings), settings.serve)

    def run() -> int:
        uvloop.run(serve(server, parent_pipe, fd, uds))
        return 0 if server.started else 1

    return run


if __name__ == "__main__":
    sys.exit(main())

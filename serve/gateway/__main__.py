"""`python -m serve.gateway [--parent-pipe]`: serve with the settings of this environment."""

import argparse
import sys

import uvloop

from everlearn.errors import EverlearnError
from everlearn.settings import load_settings
from serve.gateway.app import create_app
from serve.gateway.logs import configure
from serve.gateway.server import build_server, serve


def main() -> int:
    """Serve until stopped; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serve.gateway", description="Serve OpenAI's API.")
    parser.add_argument("--parent-pipe", action="store_true", help="exit when standard input ends")
    arguments = parser.parse_args()
    try:
        settings = load_settings()
        configure(settings.log_level)
        server = build_server(create_app(settings), settings.serve)
    except EverlearnError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    uvloop.run(serve(server, arguments.parent_pipe))
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())

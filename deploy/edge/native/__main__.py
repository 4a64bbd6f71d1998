"""``everlearn-runner FOLDER``: serve an edge folder by OpenAI's HTTP API."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from deploy.edge.native.listening import listen_at_path, listen_on_port
from deploy.edge.native.runner import Runner
from everlearn.errors import EverlearnError, InvalidInput
from everlearn.logs import configure_logging

UPDATES = ("init", "update", "rollback", "current")
"""First arguments that are commands of deploy.updates.device, which the file brings along."""
KEY_VARIABLE = "EVERLEARN_API_KEY"
MAX_KEY_BYTES = 4096


def main() -> None:
    """Serve until SIGTERM; running answers are ended first. Or keep a device's folder up to date."""
    if sys.argv[1:2] and sys.argv[1] in UPDATES:
        from deploy.updates.device.__main__ import main as update

        sys.exit(update(sys.argv[1:], "everlearn-runner"))
    options = parser().parse_args()
    configure_logging("info")
    try:
        key = read_key(options.key_file)
        with (
            listen_at_path(options.uds)
            if options.uds
            else listen_on_port(options.host, options.port, key is not None)
        ) as listener:
            sys.exit(Runner(options.folder, listener, key, options.threads).run())
    except EverlearnError as error:
        print(error.message, file=sys.stderr)
        sys.exit(error.exit_code)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="everlearn-runner",
        description="Serve the model of an edge folder by OpenAI's HTTP API: chat completions, completions, "
        "embeddings, labels and scores, models, health.",
        epilog="SIGTERM ends it after the running answers. Where FOLDER is a link that is moved, or the folder of a "
        "device that is updated, the new version is verified, loaded and served, and the old one ends its running "
        f"answers. {', '.join(UPDATES)}: commands that keep a device's folder up to date.",
    )
    made.add_argument("folder", type=Path, metavar="FOLDER", help="made by everlearn deploy edge, or by init")
    made.add_argument("--host", default="127.0.0.1", help="another than this machine's own needs a key")
    made.add_argument("--port", type=int, default=8080, help="0: any free one (%(default)s)")
    made.add_argument("--uds", type=Path, metavar="PATH", help="a unix socket instead of a port")
    made.add_argument("--threads", type=int, help="all cores that it may use")
    made.add_argument(
        "--key-file", type=Path, metavar="FILE", help=f"the key that clients send; or {KEY_VARIABLE}"
    )
    return made


def read_key(file: Path | None) -> str | None:
    """From the file or the environment. Raises InvalidInput for one that no header can carry."""
    if file is None:
        where, key = KEY_VARIABLE, os.environ.get(KEY_VARIABLE)
        if key is None:
            return None
    else:
        where = str(file)
        try:
            with file.open("rb") as stream:
                key = stream.read(MAX_KEY_BYTES + 1).decode("latin-1").strip()
        except OSError as error:
            raise InvalidInput(f"--key-file {file}: {error.strerror}", param="key-file") from None
    if not key or len(key) > MAX_KEY_BYTES or not (key.isascii() and key.isprintable()) or " " in key:
        raise InvalidInput(f"{where} holds no key: one line of printable ASCII without spaces is one")
    return key


if __name__ == "__main__":
    main()

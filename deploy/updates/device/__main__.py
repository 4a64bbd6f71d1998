"""``python -m deploy.updates.device``, and the runner's ``init``, ``update``, ``rollback`` and ``current``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pydantic import ValidationError

from deploy.updates.device.store import Device, Followed, create
from everlearn.errors import EverlearnError, InvalidInput, Unavailable

MAX_ROOT_BYTES = 1 << 20


def main(arguments: list[str] | None = None, program: str = "python -m deploy.updates.device") -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog=program, description="Set up a device's folder, update it, or roll it back."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("init", help="make a folder that follows a channel")
    first.add_argument("folder", type=Path)
    first.add_argument(
        "--root", type=Path, required=True, help="a root.json of the channel, from its publisher"
    )
    first.add_argument("--url", required=True, help="where the channel is served")
    first.add_argument("--model", required=True)
    first.add_argument("--target", required=True)
    for name, told in (
        ("update", "fetch the channel's version, verify it, and make it current"),
        ("rollback", "make the last good version current again"),
        ("current", "print the folder to serve"),
    ):
        commands.add_parser(name, help=told).add_argument("folder", type=Path)
    said = parser.parse_args(arguments)
    try:
        run(said)
    except EverlearnError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {said.folder} cannot be read or written: {error}", file=sys.stderr)
        return Unavailable.exit_code
    return 0


def run(said: argparse.Namespace) -> None:
    if said.command == "init":
        create(said.folder, read_root(said.root), followed(said))
        return
    device = Device(said.folder)
    if said.command == "update":
        from deploy.updates.device.update import update
        from everlearn.progress import shown

        with shown() as progress:
            done = update(device, progress)
        news = f"updated by {done.received_bytes:,} bytes" if done.changed else "nothing new"
        print(f"version {done.version} ({done.alias}): {news}")
    elif said.command == "rollback":
        device.go_back()
    print(device.current())


def read_root(file: Path) -> bytes:
    """Raises InvalidInput."""
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_ROOT_BYTES)
    except OSError as error:
        raise InvalidInput(f"--root {file}: {error.strerror}", param="root") from None


def followed(said: argparse.Namespace) -> Followed:
    """Raises InvalidInput naming the option."""
    try:
        return Followed(url=said.url, model=said.model, target=said.target)
    except ValidationError as error:
        name = str(error.errors(include_url=False)[0]["loc"][0])
        right = "http:// or https:// and a host" if name == "url" else "a name, as smollm2 or linux-arm64"
        raise InvalidInput(f"--{name} {getattr(said, name)!r} must be {right}", param=name) from None


if __name__ == "__main__":
    raise SystemExit(main())

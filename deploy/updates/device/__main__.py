"""``python -m deploy.updates.device``: make a device's folder, update it, go back."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from deploy.updates.device.store import Device, Followed, create
from everlearn.errors import EverlearnError


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.updates.device", description=__doc__)
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
    return 0


def run(said: argparse.Namespace) -> None:
    if said.command == "init":
        create(
            said.folder, said.root.read_bytes(), Followed(url=said.url, model=said.model, target=said.target)
        )
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


if __name__ == "__main__":
    raise SystemExit(main())

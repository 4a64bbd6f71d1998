"""``python -m train RUN_DIR``: one process of a run, started by ``train.launch`` or by torchrun.

With ``--follow`` the end of stdin ends the process: its parent is gone. Progress goes to stdout, a JSON line each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from everlearn.processes.parent_death import die_with_parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m train")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--follow", action="store_true")
    parser.add_argument("--nice", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.follow:
        follow_parent()
    if arguments.nice:
        os.nice(arguments.nice)
    say = protocol()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    return run(arguments.run_dir, say, stop)


def run(run_dir: Path, say: Any, stop: threading.Event) -> int:
    from everlearn.errors import EverlearnError
    from train.run import train
    from train.runs.claim import claimed_by_rank

    rank = int(os.environ.get("RANK", "0"))
    try:
        with claimed_by_rank(run_dir, rank):
            train(
                run_dir,
                on_step=lambda report: say(report=dataclasses.asdict(report)) if rank == 0 else None,
                should_stop=stop.is_set,
                tell=lambda line: say(told=line) if rank == 0 else None,
            )
    except OSError as error:
        named = f" ({error.filename})" if error.filename else ""
        say(error="Unavailable", message=f"{error.strerror or error}{named}", param=None)
        return 3
    except EverlearnError as error:
        say(error=type(error).__name__, message=error.message, param=error.param)
        return 3
    if rank == 0:
        say(done=True)
    return 0


def follow_parent() -> None:
    """The process ends with its parent, whatever it is doing."""
    die_with_parent()
    threading.Thread(target=_end_with_stdin, daemon=True).start()


def _end_with_stdin() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def protocol() -> Any:
    """What libraries print goes to stderr; stdout is for lines that the parent reads."""
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**message: Any) -> None:
        lines.write(json.dumps(message) + "\n")
        lines.flush()

    return say


if __name__ == "__main__":
    sys.exit(main())

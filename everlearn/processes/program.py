"""Other processes of this program: their command line and environment, and what to say when one of them died.

Requests to a child and its answers are in ``child``, a child in an asyncio program in ``async_child``.
"""

from __future__ import annotations

import os
import signal
import sys
import sysconfig
from pathlib import Path
from typing import IO

import everlearn

QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Environment of a child whose log people read, and which may fork."""
TAIL_BYTES = 16_384
TAIL_CHARS = 1500


def python(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of this program under this interpreter.

    ``-P``: no file of the working directory stands in for a module.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(**added: str) -> dict[str, str]:
    """This process's environment, in which Python imports what this process imports, and ``added``.

    The program's own root comes first. The interpreter's own folders are left out: a child of the same one finds them, and
    another Python that it may start must not.
    """
    root = str(Path(everlearn.__file__).resolve().parent.parent)
    own = tuple(sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    others = [path for path in sys.path if path and path != root and os.path.exists(path)]
    paths = [root, *(path for path in others if not path.startswith(own))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | added


def log_tail(log: IO[bytes]) -> str:
    """The end of a log, at most ``TAIL_CHARS`` long; progress bars as lines of their own."""
    log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
    return log.read().decode("utf-8", "replace").replace("\r", "\n").strip()[-TAIL_CHARS:]


def describe_exit(code: int) -> str:
    """How a process ended, by its exit code or minus the signal that killed it: "exited with code 1"."""
    if code >= 0:
        return f"exited with code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""  # the system kills so when memory is out
    return f"was killed by {signal.Signals(-code).name}{hint}"


def describe_death(name: str, code: int, log: IO[bytes]) -> str:
    """What a person is told of a process that died: how it ended, and the end of its log."""
    tail = log_tail(log)
    return f"{name} {describe_exit(code)}" + (f"; the end of its log:\n{tail}" if tail else "")

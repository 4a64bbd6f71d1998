"""Heavy work in a process of its own: its memory, its prints and its crashes stay there.

The parent sends one JSON request; the child answers with JSON lines: steps, then a result or an error.
What libraries print goes to a log of which the parent shows the end, should the child die.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any, NoReturn

from everlearn import errors
from everlearn.progress import Progress

Work = Callable[[dict[str, Any], Progress], Mapping[str, Any]]
LOG_TAIL_CHARS = 1200


def run_child(module: str, request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Runs ``python -m module``, which calls :func:`answer`, and returns its result.

    Raises the child's EverlearnError as itself, and Unavailable with the end of its log where it died.
    """
    command = [sys.executable, "-P", "-m", module]
    paths = os.pathsep.join(path for path in sys.path if path and os.path.isdir(path))
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": paths}
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | quiet,
        )
        try:
            return _converse(child, request, progress, module, log)
        finally:
            child.kill()
            child.communicate()


def _converse(
    child: subprocess.Popen[str],
    request: Mapping[str, Any],
    progress: Progress,
    module: str,
    log: IO[bytes],
) -> dict[str, Any]:
    assert child.stdin and child.stdout
    try:
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
    except BrokenPipeError:
        _raise_dead(child, module, log)
    for line in child.stdout:
        message: dict[str, Any] = json.loads(line)
        if "step" in message:
            progress(message["step"], message["done"])
        elif "error" in message:
            kind: type[errors.EverlearnError] = getattr(errors, message["error"])
            error = kind(message["message"], param=message["param"])
            error.code = message["code"]  # pyright: ignore[reportAttributeAccessIssue]: of the child's own kind
            raise error
        else:
            return message["result"]
    _raise_dead(child, module, log)


def _raise_dead(child: subprocess.Popen[str], module: str, log: IO[bytes]) -> NoReturn:
    code = child.wait()
    log.seek(0)
    tail = log.read().decode("utf-8", "replace").replace("\r", "\n").strip()[-LOG_TAIL_CHARS:]
    how = f"was ended by signal {-code}" if code < 0 else f"failed with exit {code}"
    hint = " (out of memory?)" if code == -9 else ""
    raise errors.Unavailable(f"{module} {how}{hint}; its last words:\n{tail}")


def answer(work: Work) -> None:
    """The child's side: does one request. An end of stdin, so the parent's death, ends the process."""
    protocol = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(**message: Any) -> None:
        protocol.write(json.dumps(message) + "\n")
        protocol.flush()

    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        result = work(request, lambda step, done=None: say(step=step, done=done))
    except errors.EverlearnError as error:
        say(error=_known(type(error)), code=error.code, message=error.message, param=error.param)
    else:
        say(result=result)


def _known(kind: type[errors.EverlearnError]) -> str:
    """The error's own name, or its nearest ancestor's in the one family that every process knows."""
    return next(one.__name__ for one in kind.__mro__ if one.__module__ == errors.__name__)


def _die_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)

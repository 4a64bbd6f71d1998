"""Heavy or hostile work in a process of its own: its memory, its prints and its crashes stay there.

The parent sends one JSON request; the child answers with JSON lines: steps, then a result or an error.
What libraries print goes to a log of which the parent shows the end, should the child die. A child that reads
what users bring gets :class:`Limits`: whatever the file does then ends as one error about the file.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, NoReturn

from everlearn import errors
from everlearn.memory import physical_bytes
from everlearn.processes.parent_death import die_with_parent
from everlearn.processes.program import QUIET, describe_death, describe_exit, environment, log_tail, python
from everlearn.progress import Progress

Work = Callable[[dict[str, Any], Progress], Mapping[str, Any]]
OUT_OF_MEMORY = "out_of_memory"
ALL_MEMORY = 2**62
MACHINE_SHARE = 0.75
"""Of the machine's memory, what a limited child gets at most: before the system has to kill someone."""


@dataclass(frozen=True)
class Limits:
    """What a child may take that reads ``what`` (a file, as messages name it; ``param`` as errors do).

    ``memory_bytes``: private memory, on Linux. ``wall_s``: of the clock on the wall; None: any time.
    """

    what: str
    memory_bytes: int
    wall_s: float | None
    param: str | None = None

    def impose(self, child: subprocess.Popen[str]) -> None:
        """On a child that waits for its request, so that nothing is read before."""
        if sys.platform == "linux":  # macOS limits neither another process nor memory
            for kind, limit in ((resource.RLIMIT_DATA, self.memory), (resource.RLIMIT_CORE, 0)):
                resource.prlimit(child.pid, kind, (limit, limit))

    @property
    def memory(self) -> int:
        """In bytes, on this machine."""
        return min(self.memory_bytes, int(MACHINE_SHARE * physical_bytes()))

    def refusal(self, how: str) -> errors.InvalidInput:
        """What is wrong with a file that a child could not read within the limits."""
        return errors.InvalidInput(f"{self.what} {how}: it is refused", param=self.param)

    @property
    def took_too_much(self) -> str:
        return f"takes more than {self.memory / 2**30:.1f} GiB of memory to read"

    @property
    def took_too_long(self) -> str:
        return f"takes longer than {self.wall_s:g} s to read"


def run_child(
    module: str,
    request: Mapping[str, Any],
    progress: Progress,
    limits: Limits | None = None,
    interpreter: str | None = None,
) -> dict[str, Any]:
    """Runs ``python -m module``, which calls :func:`answer`, and returns its result.

    ``interpreter``: the Python of another environment; what its packages are is then its own matter.
    Raises the child's EverlearnError as itself, and Unavailable with the end of its log where it died; with
    ``limits`` InvalidInput, since then the file that it read is to blame.
    """
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [interpreter, *python(module)[1:]] if interpreter else python(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(**QUIET),
        )
        late = threading.Event()
        timer = threading.Timer((limits and limits.wall_s) or 0, _end_late, (child, late))
        timer.daemon = True
        try:
            if limits:
                limits.impose(child)
                if limits.wall_s is not None:
                    timer.start()
            return _converse(child, request, progress, _Fate(child, module, log, limits, late))
        finally:
            timer.cancel()
            child.kill()
            child.communicate()


def _end_late(child: subprocess.Popen[str], late: threading.Event) -> None:
    late.set()
    child.kill()


@dataclass
class _Fate:
    """How to tell of a child that ended without an answer."""

    child: subprocess.Popen[str]
    module: str
    log: IO[bytes]
    limits: Limits | None
    late: threading.Event

    def tell(self) -> NoReturn:
        code = self.child.wait()
        limits = self.limits
        if limits and self.late.is_set():
            raise limits.refusal(limits.took_too_long)
        if limits and code != -signal.SIGKILL:  # the system kills whoever is there when memory is out
            last = (log_tail(self.log) or "nothing").splitlines()[-1]
            raise limits.refusal(f"broke its reader, which {describe_exit(code)} and said: {last}")
        raise errors.Unavailable(describe_death(self.module, code, self.log))


def _converse(
    child: subprocess.Popen[str], request: Mapping[str, Any], progress: Progress, fate: _Fate
) -> dict[str, Any]:
    assert child.stdin and child.stdout
    try:
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
    except BrokenPipeError:
        fate.tell()
    for line in child.stdout:
        message: dict[str, Any] = json.loads(line)
        if "step" in message:
            progress(message["step"], message["done"])
        elif "error" in message:
            if fate.limits and message["code"] == OUT_OF_MEMORY:
                raise fate.limits.refusal(fate.limits.took_too_much)
            raise said_error(message)
        else:
            return message["result"]
    fate.tell()


def said_error(message: Mapping[str, Any]) -> errors.EverlearnError:
    """The child's error, in this process."""
    kind: type[errors.EverlearnError] = getattr(errors, message["error"])
    error = kind(message["message"], param=message["param"])
    error.code = message["code"]  # pyright: ignore[reportAttributeAccessIssue]: of the child's own kind
    return error


def answer(work: Work) -> None:
    """The child's side: does one request. An end of stdin, so the parent's death, ends the process."""
    say = _protocol()
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _do(work, request, say)


def answer_each(work: Work) -> None:
    """The child's side of a :class:`everlearn.processes.worker.Worker`: does requests until stdin ends."""
    say = _protocol()
    for line in sys.stdin:
        _do(work, json.loads(line), say)


def _protocol() -> Callable[..., None]:
    """What a child answers through; whatever it prints goes to its log."""
    die_with_parent()  # also where a library never lets go of the interpreter
    protocol = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(**message: Any) -> None:
        protocol.write(json.dumps(message) + "\n")
        protocol.flush()

    return say


def _do(work: Work, request: dict[str, Any], say: Callable[..., None]) -> None:
    try:
        result = work(request, lambda step, done=None: say(step=step, done=done))
    except errors.EverlearnError as error:
        say(error=_known(type(error)), code=error.code, message=error.message, param=error.param)
    except OSError as error:
        named = f" ({error.filename})" if error.filename else ""
        say(error="Unavailable", code="unavailable", message=f"{error.strerror or error}{named}", param=None)
    except MemoryError as error:
        say(error="Unavailable", code=OUT_OF_MEMORY, message=f"out of memory: {error}", param=None)
    else:
        say(result=result)


def _known(kind: type[errors.EverlearnError]) -> str:
    """The error's own name, or its nearest ancestor's in the one family that every process knows."""
    return next(one.__name__ for one in kind.__mro__ if one.__module__ == errors.__name__)


def _die_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)

"""A child process that answers one request after another, so that its start is paid once."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from everlearn.errors import EverlearnError, Unavailable
from everlearn.processes.child import Limits, said_error
from everlearn.processes.program import QUIET, describe_death, environment, python
from everlearn.progress import Progress, silent


class WorkerDied(Unavailable):
    """The child ended without an answer. ``ended_with``: minus the signal that killed it, or what it exited with."""

    def __init__(self, message: str, ended_with: int) -> None:
        super().__init__(message)
        self.ended_with = ended_with


class Worker:
    """Runs ``python -m module``, which calls ``everlearn.processes.child.answer_each``.

    One thread at a time asks. After :class:`WorkerDied` the next request starts another child.
    """

    def __init__(self, module: str, limits: Limits | None = None) -> None:
        self._module, self._limits = module, limits
        self._child: subprocess.Popen[str] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._lock = threading.Lock()

    def ask(self, request: Mapping[str, Any], progress: Progress = silent) -> dict[str, Any]:
        """The answer. Raises the child's EverlearnError as itself, and WorkerDied."""
        with self._lock:
            child = self._child or self._started()
            assert child.stdin and child.stdout
            try:
                child.stdin.write(json.dumps(request) + "\n")
                child.stdin.flush()
                for line in child.stdout:
                    message: dict[str, Any] = json.loads(line)
                    if "step" in message:
                        progress(message["step"], message["done"])
                    elif "error" in message:
                        raise said_error(message)
                    else:
                        return message["result"]
            except BrokenPipeError:
                pass
            except EverlearnError:
                raise
            except BaseException:
                self._end()  # its answer would be taken for the next request's
                raise
            code = self._end()
            raise WorkerDied(describe_death(self._module, code, self._log), code)

    def close(self) -> None:
        """Ends the child, whatever it is doing."""
        self._end()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self) -> subprocess.Popen[str]:
        self._log.seek(0)
        self._log.truncate()
        child = subprocess.Popen(
            python(self._module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment(**QUIET),
        )
        self._child = child
        if self._limits:
            self._limits.impose(child)
        return child

    def _end(self) -> int:
        """Returns how the child ended."""
        child, self._child = self._child, None
        if child is None:
            return 0
        assert child.stdin and child.stdout
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        try:
            child.wait(0.2)
        except subprocess.TimeoutExpired:
            child.kill()
        code = child.wait()
        child.stdout.close()  # last: a thread that reads it holds it until the child has ended
        return code

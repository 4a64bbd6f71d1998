"""Children of ``run_child`` that begin with torch and transformers loaded: reading those takes most of a small child's time.

A server that has them loaded, and nothing of ours, forks; the fork runs the module as ``python -m`` would, on the pipes,
in the environment and in the folder that it is given, and ends as an interpreter ends. What a child is apart from that
stays as it is: a process of its own that reads a request, answers, prints, and may be limited, killed or die. In each
test run the first child of every module begins cold, as for users: what it imports must be there without the server.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

from everlearn.processes.program import QUIET, environment, python

LOADED = ("torch", "transformers.models.llama.modeling_llama", "transformers.models.bert.modeling_bert")
WARM = ("compress.", "everlearn.importing.model_check")
"""What begins so, by the names of modules."""
MESSAGE_BYTES = 2**17
AVAILABLE = sys.platform == "linux"
started: list[subprocess.Popen[bytes]] = []


class Warm:
    """What ``everlearn.processes.child`` uses of ``subprocess``: children that use torch begin warm, others as they do."""

    PIPE = subprocess.PIPE
    begun: Path
    """A folder of this test run, with a file for each module whose first child has begun."""

    @classmethod
    def Popen(cls, argv: Sequence[str], **options: Any) -> WarmChild | subprocess.Popen[str]:
        start, arguments = list(argv[:3]), argv[3:]
        if AVAILABLE and [*start, arguments[0]] == python(arguments[0]) and arguments[0].startswith(WARM):
            try:
                (cls.begun / arguments[0]).touch(exist_ok=False)
            except FileExistsError:
                return WarmChild(arguments, options["stderr"], options["env"])
        return subprocess.Popen(argv, **options)


class WarmChild:
    """A running child, as ``subprocess.Popen`` shows it."""

    def __init__(self, arguments: Sequence[str], stderr: IO[bytes], env: Mapping[str, str]) -> None:
        from_us, to_us = os.pipe(), os.pipe()
        self._fate, theirs = socket.socketpair()
        asked = json.dumps({"arguments": list(arguments), "env": dict(env), "cwd": os.getcwd()}).encode()
        given = [from_us[0], to_us[1], stderr.fileno(), theirs.fileno()]
        socket.send_fds(server(), [asked], given)
        for descriptor in (from_us[0], to_us[1]):
            os.close(descriptor)
        theirs.close()
        self.stdin, self.stdout = os.fdopen(from_us[1], "w"), os.fdopen(to_us[0])
        self.pid = int(self._told())
        self.returncode: int | None = None

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = int(self._told())
            self._fate.close()
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and the server has seen it
                os.kill(self.pid, signal.SIGKILL)

    def communicate(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        self.stdout.close()
        self.wait()

    def _told(self) -> str:
        said = self._fate.recv(32).decode()
        assert said, "the server of warm children ended"
        return said


@cache
def server() -> socket.socket:
    """A connection to this process's server, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    started.append(subprocess.Popen(python(__name__), stdin=theirs, env=environment(**QUIET)))
    theirs.close()
    return ours


def serve(control: socket.socket) -> list[str]:
    """Fork a child for each message, and tell of its end; returns, in each child alone, what it is to run."""
    waiting = selectors.DefaultSelector()
    waiting.register(control, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.data:
                waiting.unregister(key.fd)
                key.data(key.fd)
                continue
            message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 4)
            if not message:
                os._exit(0)
            asked: dict[str, Any] = json.loads(message)
            if not (pid := os.fork()):
                waiting.close()
                return become(asked, descriptors)
            *pipes, fate = descriptors
            for pipe in pipes:
                os.close(pipe)
            os.write(fate, str(pid).encode().ljust(32))
            waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, _ender(pid, fate))


def _ender(pid: int, fate: int) -> Callable[[int], None]:
    def end(pidfd: int) -> None:
        _, status = os.waitpid(pid, 0)
        os.write(fate, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(fate)
        os.close(pidfd)

    return end


def become(asked: Mapping[str, Any], descriptors: Sequence[int]) -> list[str]:
    """Take over pipes, environment, import path and folder."""
    for theirs, ours in zip(descriptors, (0, 1, 2), strict=False):
        os.dup2(theirs, ours)
    for descriptor in descriptors:
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(asked["env"])
    paths = asked["env"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = list(dict.fromkeys([*filter(None, paths), *sys.path]))
    os.chdir(asked["cwd"])
    return asked["arguments"]


if __name__ == "__main__":
    for name in LOADED:
        importlib.import_module(name)
    gc.freeze()
    module, *arguments = serve(socket.socket(fileno=os.dup(0)))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)

"""A child process in an asyncio program: it cannot outlive its parent, and its last lines are kept for when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from everlearn.processes.parent_death import die_with_parent
from everlearn.processes.program import describe_exit

KEPT_LINES = 20
MAX_LINE_BYTES = 1024**2


class AsyncChild:
    """A running process: in a session of its own, so that Ctrl-C in a terminal reaches only its parent."""

    def __init__(self, process: Process, on_line: Callable[[str], None] | None) -> None:
        self._process = process
        self.pid = process.pid
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._reader = asyncio.create_task(self._read(on_line)) if on_line else None

    @classmethod
    async def start(
        cls, argv: Sequence[str], env: Mapping[str, str], on_line: Callable[[str], None] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> AsyncChild:  # fmt: skip
        """Start `argv`. Its output goes line by line to `on_line`, or straight to our stderr without one."""
        process = await asyncio.create_subprocess_exec(
            *argv,
            env={**env, "PYTHONUNBUFFERED": "1"},
            stdin=PIPE,
            stdout=PIPE if on_line else sys.stderr.fileno(),
            stderr=STDOUT if on_line else None,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=die_with_parent,  # elsewhere than on Linux the child notices that its stdin ended
            limit=MAX_LINE_BYTES,
        )
        return cls(process, on_line)

    async def _read(self, on_line: Callable[[str], None]) -> None:
        stream = self._process.stdout
        assert stream is not None
        while True:
            try:
                raw = await stream.readline()
            except ValueError:  # a line beyond MAX_LINE_BYTES
                continue
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip()
            if line:
                self.last_lines.append(line)
                on_line(line)

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    async def wait(self) -> int:
        """The exit code, once the process has ended and its last line is read; minus the signal that killed it."""
        code = await self._process.wait()
        if self._reader:
            await asyncio.wait({self._reader}, timeout=1.0)  # a grandchild may hold the pipe open
        return code

    def send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def stop(self, grace_s: float) -> int:
        """Ask it to end, wait `grace_s` seconds, then kill it."""
        self.send(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self.wait(), grace_s)
        except TimeoutError:
            self.kill()
            return await self.wait()

    def kill(self) -> None:
        self.send(signal.SIGKILL)

    def describe_death(self, code: int) -> str:
        """How it ended, and the last lines that it wrote, in one paragraph for a person."""
        return "\n  ".join([describe_exit(code), *list(self.last_lines)[-5:]])

"""Compile a grammar in a process of its own first, which is ended when it takes too much time or memory.

Where expressions meet (`&` and `~` in Lark; in JSON schemas a pattern with a length, or several of them) the compiler
may need minutes and gigabytes for a line of text, and no limit of its own stops it. How long it takes does not depend on
the vocabulary, so that the process needs no model.

`python -m serve.engines.compile_check`: grammars come as lines of JSON, and what is wrong with them goes back.
"""

from __future__ import annotations

import re
import resource
import select
import subprocess
import sys
import threading
import time

import orjson
import psutil
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from everlearn.processes.program import environment, python

LIMIT_S = 2.0
"""For one grammar; schemas and grammars of the size that a request may have take at most half a second."""

START_S = 60.0
MEMORY_BYTES = 1024**3
"""Besides what the process has when it is ready."""

LIMITS = LLParserLimits(max_grammar_size=200_000, step_max_items=20_000)
"""20,000 items of the parser for one mask take some tenths of a second; JSON needs hundreds."""

MAY_EXPLODE = re.compile(r"[&~]|%regex|allOf|pattern|format|multipleOf|Length|propertyNames")
"""A grammar without any of these is compiled at once."""


class CompileCheck:
    """The process; started when it is needed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()

    def validate(self, lark: str) -> tuple[bool, list[str]]:
        """Whether a grammar fails to compile, and what the compiler says of it, as
        `LLMatcher.validate_grammar_with_warnings`: at most `LIMIT_S` long once it is its turn."""
        if not MAY_EXPLODE.search(lark):
            return LLMatcher.validate_grammar_with_warnings(LLMatcher.grammar_from_lark(lark))
        with self.lock:
            process = self._running()
            assert process.stdin and process.stdout
            answer = b""
            try:
                process.stdin.write(orjson.dumps(lark) + b"\n")
                process.stdin.flush()
                answer = self._line(process, LIMIT_S)
            except BrokenPipeError:
                pass
            if not answer:
                process.kill()
                process.wait()
                return True, [f"it takes more than {LIMIT_S:g} s or {MEMORY_BYTES // 1024**2} MB to compile"]
            failed, messages = orjson.loads(answer)
            return failed, messages

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            command = python("serve.engines.compile_check")
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, env=environment(), stdin=pipe, stdout=pipe)
            if not self._line(self.process, START_S):
                self.process.kill()
                raise RuntimeError("the process that compiles grammars did not start")
        return self.process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], timeout_s: float) -> bytes:
        """The next line, or nothing when the process ended or the time is over."""
        assert process.stdout
        came, _, _ = select.select([process.stdout], [], [], timeout_s)
        return process.stdout.readline() if came else b""


COMPILE_CHECK = CompileCheck()
"""This process's one."""


def compiled(lark: str, tokens: LLTokenizer) -> tuple[bool, list[str]]:
    """What `CompileCheck.validate` says, found by compiling for `tokens` and computing a first mask."""
    grammar = LLMatcher.grammar_from_lark(lark)
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if not failed:
        matcher = LLMatcher(tokens, grammar, limits=LIMITS, log_level=0)
        if matcher.is_error():
            return True, [matcher.get_error()]
        matcher.compute_bitmask()
    return failed, messages


def main() -> None:
    """Answer until the other side is gone."""
    tokens = LLTokenizer("byte")
    limit = psutil.Process().memory_info().vms + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    tell((False, []))
    for line in sys.stdin.buffer:
        until_s = int(time.process_time() + 2 * LIMIT_S + 1)  # where nobody is left to end this process
        resource.setrlimit(resource.RLIMIT_CPU, (until_s, resource.RLIM_INFINITY))
        try:
            tell(compiled(orjson.loads(line), tokens))
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            tell((True, [str(error)]))


def tell(found: tuple[bool, list[str]]) -> None:
    sys.stdout.buffer.write(orjson.dumps(found) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

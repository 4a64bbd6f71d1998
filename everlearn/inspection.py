"""Looks into a bundle's ONNX graphs and chat templates in a process of its own, with limits on time and memory.

A hostile file can then kill or stall that process, and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath

from everlearn.errors import InvalidInput, Unsupported

WALL_LIMIT_S = 120
TEMPLATES = frozenset({"tokenizer_config.json", "chat_template.json"})


def inspect_contents(directory: Path, files: set[str]) -> None:
    """Raises InvalidInput naming the file and what is wrong with it; Unsupported where a library is missing."""
    paths = sorted(path for path in files if _needs_inspection(path))
    if not paths:
        return
    command = [sys.executable, "-P", "-m", "everlearn.inspector", str(directory), *paths]
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            timeout=WALL_LIMIT_S,
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
        )
        output, code = done.stdout, done.returncode
    except subprocess.TimeoutExpired as expired:
        output, code = expired.stdout or b"", None
    if code != 0:
        raise _explain(output, code)


def _needs_inspection(path: str) -> bool:
    name = PurePosixPath(path)
    return name.suffix.lower() in (".onnx", ".jinja") or name.name in TEMPLATES


def _explain(output: bytes, code: int | None) -> InvalidInput | Unsupported:
    """The inspector prints each file's name before it looks, and what it finds as JSON."""
    *_, last = [line for line in output.decode("utf-8", "replace").splitlines() if line.strip()] or ["{}"]
    try:
        said: dict[str, str] = json.loads(last)
    except ValueError:
        said = {}
    path = said.get("file", "a file")
    if missing := said.get("missing"):
        return Unsupported(f"looking into {path} needs {missing}: pip install 'everlearn[edge]'")
    if problem := said.get("problem"):
        return InvalidInput(f"{path}: {problem}", param=path)
    how = "took too long" if code is None or code in (-24, -9) else f"ended its reader ({_signal(code)})"
    return InvalidInput(f"{path} {how}: it is refused", param=path)


def _signal(code: int) -> str:
    return (
        f"signal {-code}"
        if code < 0
        else f"exit {code}; {os.strerror(code) if code < 40 else ''}".strip("; ")
    )

"""Looks into what a bundle's files say in a process of its own, with limits on time and memory.

A hostile file can then kill or stall that process, and nothing else.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from everlearn.errors import InvalidInput
from everlearn.processes.child import Limits, run_child

WALL_LIMIT_S = 120
MEMORY_BASE_BYTES = 2 * 1024**3
LOOKED_INTO = frozenset({"tokenizer_config.json", "chat_template.json", "tokenizer.json"})


def inspect_contents(directory: Path, files: set[str]) -> None:
    """Raises InvalidInput naming the file and what is wrong with it; Unsupported where a library is missing."""
    paths = sorted(path for path in files if _needs_inspection(path))
    if not paths:
        return
    looking_at = [paths[0]]
    memory = MEMORY_BASE_BYTES + 6 * max((directory / path).stat().st_size for path in paths)

    def tell(path: str, done: float | None = None) -> None:
        looking_at[0] = path

    limits = Limits("a file", memory, WALL_LIMIT_S)
    try:
        run_child("everlearn.bundles.inspector", {"directory": str(directory), "files": paths}, tell, limits)
    except InvalidInput as error:
        if error.param is not None:
            raise
        raise InvalidInput(
            f"{looking_at[0]}{error.message.removeprefix(limits.what)}", param=looking_at[0]
        ) from None


def _needs_inspection(path: str) -> bool:
    name = PurePosixPath(path)
    return name.suffix.lower() in (".onnx", ".jinja") or name.name in LOOKED_INTO

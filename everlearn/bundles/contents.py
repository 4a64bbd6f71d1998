"""Check what a bundle holds by names, links and JSON alone: a model file is code until shown otherwise.

The rules are lists of what is allowed. ONNX graphs and chat templates are looked into by
``everlearn.bundles.inspection``, in a process of its own.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, cast

from everlearn.bundles.safetensors_header import read_header
from everlearn.errors import InvalidInput
from everlearn.names import plain_name

MAX_FILES = 10_000
TEXT_SAMPLE_BYTES = 64 * 1024
MAX_JSON_BYTES = 64 * 1024**2
MAX_JSON_VALUES = 8_000_000
"""A vocabulary of 262,144 tokens and its merges are two million."""

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
SEGMENT = re.compile(r"[^/\\\x00-\x1f\x7f]{1,255}")

TEXT = frozenset({"", ".json", ".jsonl", ".jinja", ".txt", ".md", ".yaml", ".yml", ".tiktoken", ".bpe"})
WEIGHTS = frozenset({".safetensors", ".onnx", ".data", ".onnx_data", ".model", ".spm"})
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"})
PROGRAMS = frozenset({".py", ".pyc", ".pyd", ".so", ".dylib", ".dll", ".exe", ".sh"})

# Keys with which a configuration makes a loader run code from the model.
CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "custom_ops_library", "trust_remote_code"})
FILE_KEYS = frozenset({"filename", "weight_map"})


def check_name(name: str, what: str) -> str:
    """``name``, where it can name a model or an alias. Raises InvalidInput with what would be right."""
    if NAME.fullmatch(name) and ".." not in name:
        return name
    right = plain_name(name, "._-", "")
    hint = f"; {right!r} would do" if NAME.fullmatch(right) else ""
    raise InvalidInput(
        f"{what} is 1 to 64 of a-z, 0-9, '.', '_' and '-', the first a letter or digit, not {name[:80]!r}{hint}",
        param="name",
    )


def check_path(path: str) -> str:
    """``path``, where it is relative and stays inside the bundle. Raises InvalidInput."""
    parts = path.split("/")
    if len(path) > 1024 or not all(SEGMENT.fullmatch(part) and part not in (".", "..") for part in parts):
        raise InvalidInput(f"{path[:200]!r} is not a path inside the bundle", param=path[:200])
    return path


def list_files(directory: Path) -> set[str]:
    """Relative paths of the files below ``directory``, bundle.json too.

    Raises InvalidInput naming what is neither a plain file nor a folder, a hard link to someone else's file, and
    two names that differ in case only.
    """
    found: set[str] = set()
    folded: dict[str, str] = {}
    pending = [directory]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                path = PurePosixPath(Path(entry.path).relative_to(directory)).as_posix()
                check_path(path)
                twin = folded.setdefault(path.casefold(), path)
                if twin != path:
                    raise InvalidInput(f"{path!r} and {twin!r} differ in case only", param=path)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                else:
                    _plain_file(entry, path)
                    found.add(path)
                if len(folded) > MAX_FILES:
                    raise InvalidInput(f"{directory} holds more than {MAX_FILES} files")
    return found


def _plain_file(entry: os.DirEntry[str], path: str) -> None:
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        raise InvalidInput(f"{path} is a symbolic link; a bundle holds the file itself", param=path)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidInput(f"{path} is not a plain file", param=path)
    if status.st_nlink > 1 and status.st_uid != os.geteuid():
        raise _hard_link(path)


def refuse_hard_links(directory: Path, files: set[str]) -> None:
    """Raises InvalidInput naming a file that is reachable by a second name: it could change, or be a secret."""
    for path in sorted(files):
        if (directory / path).stat(follow_symlinks=False).st_nlink > 1:
            raise _hard_link(path)


def _hard_link(path: str) -> InvalidInput:
    return InvalidInput(f"{path} is a hard link: its file is also known elsewhere; copy it", param=path)


def refuse_unsafe(directory: Path, files: set[str]) -> None:
    """Raises InvalidInput naming the first file that could run code or reach out of the bundle."""
    for path in sorted(files):
        suffix = PurePosixPath(path).suffix.lower()
        if suffix in PICKLES:
            raise InvalidInput(
                f"{path} may be a pickle, which runs code when read; use safetensors", param=path
            )
        if suffix in PROGRAMS:
            raise InvalidInput(f"{path} is code; a bundle holds data alone", param=path)
        if suffix not in TEXT and suffix not in WEIGHTS:
            allowed = " ".join(sorted((TEXT | WEIGHTS) - {""}))
            raise InvalidInput(f"{path}: bundles hold no {suffix!r} files, only {allowed}", param=path)
        if suffix == ".json":
            _check_json(directory / path, path)
        elif suffix == ".safetensors":
            read_header(directory / path, path)
        elif suffix in TEXT:
            _check_text(directory / path, path)


def _check_text(file: Path, path: str) -> None:
    """UTF-8 at its start, which no pickle, archive or program is."""
    with file.open("rb") as stream:
        start = stream.read(TEXT_SAMPLE_BYTES)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        start = b"\0"
    if b"\0" in start or start.startswith(b"PK\x03\x04"):
        raise InvalidInput(f"{path} is not text, as its name says", param=path)


def read_json(file: Path, path: str | None = None, hook: Callable[[Any], Any] | None = None) -> Any:
    """What a JSON file says; ``path`` stands for its name in messages. Raises InvalidInput naming it.

    ``hook`` as ``json.loads`` takes it, for the pairs of each object.
    """
    path = path or file.name
    if file.stat().st_size > MAX_JSON_BYTES:
        raise InvalidInput(f"{path} is larger than {MAX_JSON_BYTES} bytes", param=path)
    content = file.read_bytes()
    if sum(map(content.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise InvalidInput(f"{path} holds more than {MAX_JSON_VALUES} values", param=path)
    try:
        return json.loads(content, object_pairs_hook=hook)
    except InvalidInput:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not valid JSON: {error}", param=path) from None


def read_json_object(file: Path) -> dict[str, Any]:
    """The same of a file that must hold an object."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise InvalidInput(f"{file.name} is not a JSON object", param=file.name)
    return cast("dict[str, Any]", value)


def _check_json(file: Path, path: str) -> None:
    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, value in pairs:
            _check_pair(key, value, path)
        return dict(pairs)

    read_json(file, path, check)


def _check_pair(key: str, value: Any, path: str) -> None:
    """An integer value is a vocabulary entry, whose token may be any word."""
    if isinstance(value, int) and not isinstance(value, bool):
        return
    if (key in CODE_KEYS or key.endswith("_internal")) and value not in (None, False):
        raise InvalidInput(f"{path} sets {key!r}, which makes loaders run code; remove it", param=path)
    if key in FILE_KEYS:
        for name in _strings(value):
            try:
                check_path(name)
            except InvalidInput:
                raise InvalidInput(
                    f"{path}: {key} names {name[:200]!r}, outside the bundle", param=path
                ) from None


def _strings(value: Any) -> list[str]:
    items = list(cast("dict[str, Any]", value).values()) if isinstance(value, dict) else [value]
    return [item for item in items if isinstance(item, str)]

"""The YAML settings file, with the line of every key, so that an error can point at it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from everlearn.errors import ConfigError

MAX_BYTES = 1024**2
MAX_NODES = 100_000
"""With aliases written out: each line may double what the one before it stands for."""


@dataclass(frozen=True)
class SettingsFile:
    """``values`` as nested dicts; ``lines`` by dotted key, counted from 1."""

    path: Path | None = None
    values: dict[str, Any] = field(default_factory=dict[str, Any])
    lines: dict[str, int] = field(default_factory=dict[str, int])

    def line(self, key: str) -> int | None:
        """Line of ``key`` or of its nearest parent in the file; None when the file says nothing about it."""
        while key:
            if key in self.lines:
                return self.lines[key]
            key = key.rpartition(".")[0]
        return None


def read_settings_file(path: Path | None) -> SettingsFile:
    """Reads a mapping of settings. Raises ConfigError with file and line for anything else."""
    if path is None:
        return SettingsFile()
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES} bytes: not a settings file")
    try:
        root = cast("yaml.Node | None", yaml.compose(text, Loader=yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType]
        _check_size(root, path)
        lines = _lines(root, path)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    return SettingsFile(path, {} if values is None else values, lines)


def _check_size(root: yaml.Node | None, path: Path) -> None:
    """A node that stands in itself is one without end."""
    pending = [root] if root else []
    seen = 0
    while pending:
        node = pending.pop()
        seen += 1
        if isinstance(node, yaml.MappingNode):
            pending += [one for pair in node.value for one in pair]
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value
        if seen + len(pending) > MAX_NODES:
            raise ConfigError(f"{path}: its aliases stand for more than {MAX_NODES} values")


def _lines(root: yaml.Node | None, path: Path) -> dict[str, int]:
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{path}:1: settings are a mapping of names to values, as in 'serve: {{port: 8000}}'"
        )
    lines: dict[str, int] = {}
    _collect(root, "", path, lines)
    return lines


def _collect(node: yaml.MappingNode, prefix: str, path: Path, lines: dict[str, int]) -> None:
    for name, value in node.value:
        line = name.start_mark.line + 1
        if not isinstance(name, yaml.ScalarNode) or name.tag != "tag:yaml.org,2002:str":
            raise ConfigError(f"{path}:{line}: a setting's name is a word")
        key = f"{prefix}{name.value}"
        if key in lines:
            raise ConfigError(f"{path}:{line}: {key!r} is already set on line {lines[key]}")
        lines[key] = line
        if isinstance(value, yaml.MappingNode):
            _collect(value, f"{key}.", path, lines)

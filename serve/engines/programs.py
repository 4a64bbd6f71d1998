"""The table of engines, and which of them serves a version.

The validation of ``serve.engine`` and ``--engine``, the command line's help and the table in docs/serving.md are made
from :data:`ENGINES`. CONTRIBUTING.md shows how to add one. The command line imports this module for its help, so it
imports no library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from everlearn.bundles.tasks import HEADED, TASK_WORDS
from everlearn.errors import ConfigError, Unsupported
from everlearn.processes.program import python

if TYPE_CHECKING:
    from everlearn.bundles.bundle import Format, Task
    from everlearn.registry.registry import Version
    from everlearn.settings import Settings

AUTO = "auto"
"""The default of ``serve.engine``: the formats that an engine of the table serves by default go there, others are
compressed for one."""


@dataclass(frozen=True, kw_only=True)
class EngineProgram:
    """A program that serves one bundle over HTTP: what it can serve, and how it is started and installed."""

    name: str
    """As in ``serve.engine``, ``--engine`` and ``everlearn ps``."""
    title: str
    """As in a sentence."""
    module: str
    """Run by ``python -m`` with the options of :mod:`serve.engines`."""
    tasks: tuple[Task, ...]
    formats: tuple[Format, ...]
    """Of bundles that it reads."""
    by_default: tuple[Format, ...]
    """Those of ``formats`` that ``auto`` gives to it."""
    compress_to: Mapping[Task, str]
    """The recipe of ``everlearn compress --to`` that makes a version for it where there is none. Empty: it serves what
    a version was compressed from instead."""
    package: str
    """The import package that it needs."""
    install: str
    """The command that installs it."""
    suited_to: str
    starts_in: str
    keeps_previous: bool
    """Whether the version that served before may stay loaded beside the next one."""
    reports_usage: bool
    """Whether it answers ``GET /used/``: what a request used that broke off."""

    def command(self) -> list[str]:
        """Its command line, which the options of one bundle follow."""
        return python(self.module)

    @property
    def is_installed(self) -> bool:
        return find_spec(self.package) is not None


ENGINES: dict[str, EngineProgram] = {
    engine.name: engine
    for engine in (
        EngineProgram(
            name="onnx",
            title="the ONNX engine",
            module="serve.engines.onnx",
            tasks=("generate", "embed", "text2text", *HEADED, "image_text"),
            formats=("onnx-genai", "onnx"),
            by_default=("onnx-genai", "onnx"),
            compress_to={"generate": "int4-onnx"}
            | dict.fromkeys(("embed", "text2text", *HEADED, "image_text"), "int8-onnx"),
            package="onnxruntime",
            install="make install-serve",
            suited_to="a CPU, small memory, the edge",
            starts_in="a second or two",
            keeps_previous=True,
            reports_usage=True,
        ),
        EngineProgram(
            name="vllm",
            title="vLLM",
            module="serve.engines.vllm",
            tasks=("generate",),
            formats=("safetensors", "compressed-tensors"),
            by_default=("compressed-tensors",),
            compress_to={},
            package="vllm",
            install="make install-vllm",
            suited_to="a GPU, many requests at once; W8A8 on a CPU",
            starts_in="half a minute on a CPU (three processes import torch), a minute and a half on a GPU (it compiles)",
            keeps_previous=False,  # it takes the memory that a GPU has, and would leave none for the next
            reports_usage=False,
        ),
    )
}
"""By name. Where several serve a version, ``auto`` prefers the first."""

CHOICES = (AUTO, *ENGINES)
"""What ``serve.engine`` and ``--engine`` may say."""

BY_DEFAULT: frozenset[Format] = frozenset(
    format for engine in ENGINES.values() for format in engine.by_default
)
"""The formats that ``auto`` serves as they are."""


def check_choice(settings: Settings) -> None:
    """Raises ConfigError, naming the place, where ``serve.engine`` is neither ``auto`` nor an engine of the table."""
    if settings.serve.engine in CHOICES:
        return
    from everlearn.settings import origins

    origin = origins(settings)["serve.engine"].removeprefix("env ")
    place = "" if origin == "default" else f"{origin}: "
    *others, last = map(repr, CHOICES)
    raise ConfigError(
        f"{place}serve.engine: Input should be {', '.join(others)} or {last} (got {settings.serve.engine!r})",
        param="serve.engine",
    )


def named_engine(version: Version, settings: Settings) -> EngineProgram | None:
    """The engine that the settings name for `version`; None for ``auto``, and where it does not do the version's task."""
    engine = ENGINES.get(settings.serve.engine_of(version.model))
    return engine if engine and version.task in engine.tasks else None


def engine_for(version: Version, settings: Settings) -> EngineProgram:
    """The engine that reads the format of `version`: the named one if it does, else the first of the table."""
    readers = [engine for engine in ENGINES.values() if version.format in engine.formats]
    named = named_engine(version, settings)
    return named if named in readers else readers[0]


def compresses_for(version: Version, settings: Settings) -> EngineProgram:
    """The engine that `version` is compressed for where no engine serves it as it is. Raises Unsupported if none is."""
    named = named_engine(version, settings)
    makers = [engine for engine in ENGINES.values() if version.task in engine.compress_to]
    if not makers:
        served = sorted({TASK_WORDS[task] for engine in ENGINES.values() for task in engine.tasks})
        raise Unsupported(
            f"{version.ref} is {TASK_WORDS[version.task]} (task {version.task}), which no engine serves; "
            f"{' or '.join(served)} is served",
            param="model",
        )
    return named if named in makers else makers[0]


def program(version: Version, settings: Settings) -> list[str]:
    """The command line of the engine that serves `version`, without the options of :mod:`serve.engines`.

    Raises Unsupported where no engine can: it says which one is missing, or what to do instead.
    """
    engine, named = engine_for(version, settings), named_engine(version, settings)
    maker = compresses_for(version, settings)
    recipe = maker.compress_to[version.task]
    if version.task not in engine.tasks:
        raise Unsupported(
            f"{version.ref} is {TASK_WORDS[version.task]}; compress it with --to {recipe} and {maker.title} serves it",
            param="model",
        )
    if named and named != engine:
        raise Unsupported(
            f"{version.ref} is {version.format}, and the setting serve.engine allows {named.title} only",
            param="model",
        )
    if not engine.is_installed:
        instead = (
            f"; `everlearn compress {version.model} --to {recipe}` makes a version that {maker.title} serves"
        )
        raise Unsupported(
            f"{version.ref} is {version.format}. {re.sub('^the ', 'The ', engine.title)} is not installed here: "
            f"`{engine.install}` installs it{'' if maker is engine else instead}",
            param="model",
        )
    return engine.command()

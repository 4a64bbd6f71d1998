"""The table of targets and forms, which the command line, the builder, the checks and docs/edge.md read.

It imports nothing of weight, so that ``everlearn --help`` stays quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

FormName = Literal["int4-qdq", "int4-matmulnbits", "int8-dynamic"]


@dataclass(frozen=True)
class Runtime:
    """What runs a graph on a device, and the version that everlearn checks with."""

    name: Literal["onnxruntime-web", "onnxruntime", "onnxruntime-genai"]
    version: str


@dataclass(frozen=True)
class EdgeTarget:
    """A kind of device. ``forms``: that it can run well, the default first. ``context``: tokens kept at most."""

    runtime: Runtime
    forms: tuple[FormName, ...]
    context: int
    description: str


WEB = Runtime("onnxruntime-web", "1.30.0")
NATIVE = Runtime("onnxruntime", "1.32.0")
MOBILE = Runtime("onnxruntime-genai", "0.18.0")

TARGETS: Mapping[str, EdgeTarget] = {
    "web": EdgeTarget(WEB, ("int4-qdq",), 2048, "a page in any browser, on WebAssembly"),
}

LOGITS = "logits"
"""A decoder graph's output, as onnxruntime-genai names it."""
PAST = "past_key_values."
"""What the names of its inputs of keys and values begin with."""

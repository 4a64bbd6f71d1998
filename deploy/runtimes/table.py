"""The table of other runtimes, which the command line, the refusals and docs/other-runtimes.md read.

It imports nothing of weight, so that ``everlearn --help`` stays quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

BOUND = 1e-3
"""How far the converted model's float32 logits (embeddings) may be from torch's, as an absolute difference."""

CONTEXT = 128
"""Tokens of a text where a runtime's shapes are fixed, unless said."""


@dataclass(frozen=True)
class OtherRuntime:
    """A runtime. ``packages``: what converts and runs, with the exact version; the first one is the runtime itself.

    ``lengths``: whether texts may have any length, one up to a limit that the file has, or are padded to a fixed one.
    ``families``: model types of config.json that it takes; None: any, since every result is compared with torch.
    """

    title: str
    packages: Mapping[str, str]
    backend: str
    files: str
    tasks: tuple[Literal["generate", "embed"], ...]
    lengths: Literal["any", "limited", "fixed"]
    chat: str
    used_on: str
    families: frozenset[str] | None = None

    @property
    def package(self) -> str:
        return next(iter(self.packages))


JAX_FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
SCORES = "no: a graph without a cache of keys and values, for scoring and classifying texts"

RUNTIMES: Mapping[str, OtherRuntime] = {
    "litert": OtherRuntime(
        title="LiteRT (TensorFlow Lite)",
        packages={"ai-edge-litert": "2.3.0", "litert-torch": "0.10.0"},
        backend="deploy.runtimes.backends.litert",
        files="model.tflite",
        tasks=("generate", "embed"),
        lengths="fixed",
        chat=SCORES,
        used_on="Android, and programs that use TensorFlow Lite",
    ),
    "executorch": OtherRuntime(
        title="ExecuTorch (XNNPACK)",
        packages={"executorch": "1.5.1"},
        backend="deploy.runtimes.backends.executorch",
        files="model.pte",
        tasks=("generate", "embed"),
        lengths="limited",
        chat=SCORES,
        used_on="Android and iOS apps of PyTorch's own runtime",
    ),
    "openvino": OtherRuntime(
        title="OpenVINO IR",
        packages={"openvino": "2026.4.1"},
        backend="deploy.runtimes.backends.openvino",
        files="model.xml, model.bin",
        tasks=("generate", "embed"),
        lengths="any",
        chat=SCORES + "; openvino-genai chats with the file of `everlearn gguf`",
        used_on="Intel's CPUs, GPUs and NPUs",
    ),
    "mlx": OtherRuntime(
        title="MLX",
        packages={"mlx": "0.32.4", "mlx-lm": "0.32.2"},
        backend="deploy.runtimes.backends.mlx",
        files="model.safetensors, config.json",
        tasks=("generate",),
        lengths="any",
        chat="yes: mlx-lm keeps keys and values",
        used_on="Macs with Apple silicon",
    ),
    "jax": OtherRuntime(
        title="JAX",
        packages={"jax": "0.10.2"},
        backend="deploy.runtimes.backends.jax",
        files="model.safetensors, model.py",
        tasks=("generate",),
        lengths="any",
        chat="yes: model.py keeps keys and values",
        used_on="TPUs, and research in JAX",
        families=JAX_FAMILIES,
    ),
}

"""The table of targets, which recipes, the command line, the exporters and the docs read.

It imports nothing of weight: ``everlearn --help`` and the check of a recipe stay quick. How weights may be rounded is the
table beside it, :mod:`compress.quantize.methods`. After a change, ``python -m tests.compress.tables`` writes both into
docs/compressing.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Target:
    """A format and a precision, how it is built, and how far the result may drift from its parent.

    ``decoder_child`` and ``encoder_child``: the modules that build it, each run as a process of its own; None where it
    is not built of encoders. ``max_divergence``: mean Kullback-Leibler divergence of a decoder's next-token
    distribution from the parent's, in nats per token. ``min_cosine``: lowest cosine similarity of an encoder's
    embeddings with the parent's. ``builder_options``: of onnxruntime-genai's builder. ``int8_cache``: whether keys and
    values may be kept at 8 bits. ``high_precision``: what the layers that rounding hurts most may keep, empty where all
    are rounded alike; ``high_precision_fraction``: the share of the layers' weights that do, unless the recipe or
    the method says otherwise.
    """

    precision: Literal["int4", "int8", "fp32", "w8a8", "w4a16"]
    format: Literal["onnx-genai", "compressed-tensors"]
    decoder_child: str
    max_divergence: float
    needs: Literal["export", "compress"]
    description: str
    encoder_child: str | None = None
    min_cosine: float = 1.0
    builder_options: tuple[str, ...] = ()
    int8_cache: bool = False
    high_precision: Literal["", "8 bits", "bfloat16"] = ""
    high_precision_fraction: float = 0.0


# Perplexity over the parent's, SmolLM2-135M from Q4_1, 6132 tokens, output layer at 4 bits, and the bundle's size:
#   int4 default (symmetric)  1.390   88.1 MB    chosen
#   int4 rtn, asymmetric      1.382   90.2 MB    no better than its 2 MB
#   int4 k_quant              1.419   90.2 MB    and 40 s slower to build
#   int4 rtn, symmetric       1.677   88.1 MB
#   int8                      1.004  155.3 MB    its embedding and output layer are one int8 matrix
# What 8 bits for the output layer and for the most sensitive layers change: docs/compressing.md.
# accuracy_level 4 lets the kernels multiply in int8.
TARGETS: Mapping[str, Target] = {
    "int4-onnx": Target(
        "int4",
        "onnx-genai",
        "compress.targets.onnx_decoder",
        max_divergence=1.0,
        needs="export",
        description=(
            "onnxruntime-genai's graph; weights in blocks of 32 with a float16 scale each, embedding and output layer "
            "one matrix where the model ties them"
        ),
        builder_options=("block_size=32", "accuracy_level=4"),
        int8_cache=True,
        high_precision="8 bits",
    ),
    "int8-onnx": Target(
        "int8",
        "onnx-genai",
        "compress.targets.onnx_decoder",
        max_divergence=0.05,
        needs="export",
        description="the same at 8 bits; of encoders and CLIP onnxruntime's dynamic INT8, weights at 7 bits",
        encoder_child="compress.targets.onnx_encoder",
        min_cosine=0.95,
        builder_options=("block_size=32", "accuracy_level=4"),
        int8_cache=True,
    ),
    "fp32-onnx": Target(
        "fp32",
        "onnx-genai",
        "compress.targets.onnx_decoder",
        max_divergence=0.001,
        needs="export",
        description="the same in float32, to check a graph",
        encoder_child="compress.targets.onnx_encoder",
        min_cosine=0.999,
    ),
    "w8a8": Target(
        "w8a8",
        "compressed-tensors",
        "compress.targets.vllm",
        max_divergence=0.2,
        needs="compress",
        description=(
            "INT8 weights with a scale per output channel; activations are rounded token by token as they come, their "
            "outliers divided out before ([arXiv 2211.10438](https://arxiv.org/abs/2211.10438); Llama, Mistral and "
            "Qwen; the weights of others are rounded by GPTQ); embedding, output layer and the layers that 8 bits hurt "
            "most stay bfloat16"
        ),
        high_precision="bfloat16",
        high_precision_fraction=0.25,
    ),
    "w4a16": Target(
        "w4a16",
        "compressed-tensors",
        "compress.targets.vllm",
        max_divergence=1.0,
        needs="compress",
        description=(
            "INT4 weights with a scale per group of 32, 64 or 128; vLLM multiplies them packed on GPUs and on CPUs with "
            "AVX-512, and unpacks them on others while it loads (as large and as fast there as unquantized weights; "
            "`w8a8` likewise on x86 without VNNI)"
        ),
    ),
}
DEFAULT_TARGET = "int4-onnx"

GGUF_CHILD = "compress.targets.gguf"
GGUF_TYPES: Mapping[str, float] = {"f32": 0.001, "f16": 0.01, "q8_0": 0.05, "q4_0": 1.0}
"""How ``everlearn gguf`` stores matrices, and how far such a file may be from its parent, in nats per token: as far as the
ONNX target of as many bits."""
DEFAULT_GGUF_TYPE = "q8_0"

OTHER_CHILDREN: Mapping[str, str] = {
    "text2text": "compress.targets.onnx_encoder_decoder",
    "image_text": "compress.targets.onnx_image_text",
}
"""What builds models of these tasks as the targets for encoders."""
FOR_ENCODERS = tuple(name for name, target in TARGETS.items() if target.encoder_child)
FOR_VLLM = tuple(name for name, target in TARGETS.items() if target.format == "compressed-tensors")


def targets_table() -> list[str]:
    """The targets as docs/compressing.md has them, line by line."""
    lines = ["| target | what it is | at most from its parent | needs |", "|---|---|---|---|"]
    for name, target in TARGETS.items():
        limit = f"{target.max_divergence:g} nats per token"
        if target.encoder_child:
            limit += f" or prediction, of embeddings a cosine of {target.min_cosine:g}"
        what = target.description
        lines.append(f"| `{name}` | {what} | {limit} | `everlearn[{target.needs}]` |")
    return lines

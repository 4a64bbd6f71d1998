"""What can be made of which architecture, told by its name before any work begins.

Names are those of ``architectures`` in config.json. docs/architectures.md is this table with the figures that prove it;
the test that writes it fails where the two differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from everlearn.bundle import Task
from everlearn.errors import Unsupported
from everlearn.gguf_models import BY_ARCHITECTURE

Made = Literal["int4-onnx", "int8-onnx", "fp32-onnx", "w8a8", "w4a16", "gguf"]
"""All that a version can be made into."""

TABLE = "docs/architectures.md"

ONNX_DECODERS = frozenset({
    "Ernie4_5ForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GraniteForCausalLM",
    "LlamaForCausalLM", "MistralForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM",
    "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
})  # fmt: skip
"""Those whose graph is held to torch in float32."""

ONNX_ENCODERS = frozenset({"bert", "roberta", "modernbert"})
"""Those whose embeddings are held to torch, by ``model_type``: heads, which architectures name, play no part."""

NO_GRAPH: Mapping[str, str] = {
    "OlmoForCausalLM": "onnxruntime-genai's builder makes RMSNorm of its LayerNorm",
}
"""Why, where the reason is not that onnxruntime-genai's builder lacks it."""

GGUF: Mapping[str, str] = {name: family.name for name, family in BY_ARCHITECTURE.items()}
"""llama.cpp's names for what :mod:`compress.gguf_out` writes."""


EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""How configurations say how many experts a mixture has."""
CONVOLVED = frozenset({"GPT2LMHeadModel", "OpenAIGPTLMHeadModel"})
"""Those whose matrices are transformers' Conv1D."""


def architecture_of(config: Mapping[str, Any]) -> str:
    """The architecture that config.json names. Raises Unsupported where it names none."""
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not isinstance(named[0], str):
        raise Unsupported("config.json names no architecture: architectures should be a list with one name")
    return named[0]


def rope_types(config: Mapping[str, Any]) -> frozenset[str]:
    """The types of rotary positions of all layers, as transformers 4 or 5 wrote them: ``{"default"}`` for plain ones."""
    said = config.get("rope_parameters") or config.get("rope_scaling") or {}
    layers = [one for one in said.values() if isinstance(one, Mapping)] or [said]
    return frozenset(str(one.get("rope_type") or one.get("type") or "default") for one in layers)


def refuse_architecture(config: Mapping[str, Any], task: Task, to: Made) -> None:
    """Raises Unsupported where a model of this config.json cannot be made into ``to``: why, and what can be done."""
    name = architecture_of(config)
    if to.endswith("-onnx"):
        if task == "embed":
            known, lacks = config.get("model_type") in ONNX_ENCODERS, "its graph is not known to be right"
        else:
            known, lacks = name in ONNX_DECODERS, "onnxruntime-genai's builder has no graph of it"
        why = "" if known else NO_GRAPH.get(name, lacks)
    elif to == "gguf":
        why = "" if name in GGUF else f"of decoders, {', '.join(GGUF)} are written as GGUF"
    else:
        why = "encoders are not made for vLLM" if task == "embed" else lost_by_llmcompressor(name, config)
    if why:
        raise Unsupported(f"{name} cannot be made into {to}: {why}. {instead(task)} {TABLE} lists what works")


def lost_by_llmcompressor(name: str, config: Mapping[str, Any]) -> str:
    """Why llmcompressor would leave most of a decoder as it is; empty where it does not."""
    if any(isinstance(config.get(key), int) and config[key] > 1 for key in EXPERTS):
        return "its experts are stacked in one tensor, which llmcompressor does not round"
    return "its layers are no linear ones, which alone llmcompressor rounds" if name in CONVOLVED else ""


def instead(task: Task) -> str:
    """What can be done with a model that cannot be compressed so."""
    if task == "embed":
        return "Its float weights stay as they are."
    return "vLLM serves its float weights as they are, and w8a8 and w4a16 are made for vLLM."

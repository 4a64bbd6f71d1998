"""The architectures that each target supports, checked by name before any work begins.

Names are those of ``architectures`` in config.json. docs/supported-architectures.md is this table with the figures that prove it;
the test that writes it fails where the two differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compress.targets.table import FOR_ENCODERS, TARGETS
from everlearn.bundles.tasks import HEADED, Task, refuse_task
from everlearn.errors import Unsupported
from everlearn.importing.gguf_architectures import BY_ARCHITECTURE

TABLE = "docs/supported-architectures.md"

ONNX_DECODERS = frozenset({
    "Ernie4_5ForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "GraniteForCausalLM",
    "LlamaForCausalLM", "MistralForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM",
    "Qwen3ForCausalLM", "SmolLM3ForCausalLM",
})  # fmt: skip
"""Those whose graph is compared with torch in float32."""

ONNX_ENCODERS = frozenset({
    "albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet",
    "nomic_bert", "roberta", "squeezebert", "xlm-roberta", "xlm-roberta-xl",
})  # fmt: skip
"""Those whose embeddings are compared with torch, by ``model_type``: heads, which architectures name, play no part."""

ONNX_ENCODER_DECODERS = frozenset({"bart", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5", "umt5"})
"""Those whose logits are compared with torch, token by token, by ``model_type``."""

ONNX_IMAGE_TEXT = frozenset({"clip"})
"""Those whose embeddings of images and texts are compared with torch, by ``model_type``."""

VLLM = frozenset({
    "ApertusForCausalLM", "BloomForCausalLM", "Cohere2ForCausalLM", "CohereForCausalLM", "DeepseekV2ForCausalLM",
    "DeepseekV3ForCausalLM", "Ernie4_5ForCausalLM", "Exaone4ForCausalLM", "FalconForCausalLM", "GPT2LMHeadModel",
    "GPTJForCausalLM", "GPTNeoXForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration",
    "GemmaForCausalLM", "Glm4ForCausalLM", "GlmForCausalLM", "GptOssForCausalLM", "GraniteForCausalLM",
    "GraniteMoeHybridForCausalLM", "HunYuanDenseV1ForCausalLM", "Lfm2ForCausalLM", "LlamaForCausalLM",
    "Mamba2ForCausalLM", "MambaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "NemotronForCausalLM",
    "OPTForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM", "OlmoForCausalLM", "OlmoeForCausalLM", "Phi3ForCausalLM",
    "PhiForCausalLM", "Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM",
    "Qwen3NextForCausalLM", "SeedOssForCausalLM", "SmolLM3ForCausalLM", "StableLmForCausalLM", "Starcoder2ForCausalLM",
})  # fmt: skip
"""Those of them that vLLM 0.29 serves as they are, and those that are refused elsewhere."""

NO_GRAPH: Mapping[str, str] = {
    "Gemma3ForConditionalGeneration": "it reads images, too, and the engine texts alone",
    "GptOssForCausalLM": "the engine has no mixture of experts",
    "GraniteMoeHybridForCausalLM": "the engine keeps no states but keys and values",
    "HunYuanDenseV1ForCausalLM": "the graph of onnxruntime-genai's builder is off by 2.2 nats per token",
    "Lfm2ForCausalLM": "the engine keeps no states but keys and values",
    "NemotronForCausalLM": "onnxruntime-genai's builder does not know its feed-forward layers",
    "OlmoForCausalLM": "onnxruntime-genai's builder makes RMSNorm of its LayerNorm",
}
"""Why, where the reason is not that onnxruntime-genai's builder lacks it."""

HEAD_MULTIPLE = 16
"""Of GroupQueryAttention that turns queries and keys itself."""
HEAD_DIMS: Mapping[str, int] = {
    "gemma": 256,
    "gemma2": 256,
    "gemma3_text": 256,
    "qwen3": 128,
    "ernie4_5": 128,
}
"""Where config.json says nothing; elsewhere the hidden size is divided by the heads."""
ROTARY_SHARES: Mapping[str, float] = {"phi": 0.5}
ACTIVATIONS = (
    "silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "relu2"
)  # fmt: skip
"""That the builder makes, by model_type's own names."""

GGUF: Mapping[str, str] = {name: family.name for name, family in BY_ARCHITECTURE.items()}
"""llama.cpp's names for what :mod:`compress.targets.gguf` writes."""


EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""How configurations say how many experts a mixture has."""
CONVOLVED = frozenset({"GPT2LMHeadModel", "OpenAIGPTLMHeadModel"})
"""Those whose matrices are transformers' Conv1D."""

OWN_LINEAR = frozenset({"FalconForCausalLM"})
"""Those whose linear layers are a class of their own, which llmcompressor scales and stores in float."""


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


def refuse_architecture(config: Mapping[str, Any], task: Task, to: str) -> None:
    """Raises Unsupported where a model of this config.json cannot be made into ``to``: why, and what can be done.

    ``to``: a name of :data:`compress.targets.table.TARGETS`, or ``gguf``.
    """
    name = architecture_of(config)
    refuse_task(name, task, ("generate", "embed", "text2text", *HEADED, "image_text"), f"compression to {to}")
    if task == "text2text":
        why = encoders_lack(str(config.get("model_type")), to, ONNX_ENCODER_DECODERS)
    elif task == "image_text":
        why = encoders_lack(str(config.get("model_type")), to, ONNX_IMAGE_TEXT)
    elif task == "embed" or task in HEADED:
        why = encoders_lack(str(config.get("model_type")), to)
    elif to != "gguf" and TARGETS[to].format == "onnx-genai":
        lacks = NO_GRAPH.get(name, "onnxruntime-genai's builder has no graph of it")
        why = kernels_lack(config) if name in ONNX_DECODERS else lacks
    elif to == "gguf":
        why = "" if name in GGUF else f"of decoders, {', '.join(GGUF)} are written as GGUF"
    else:
        why = lost_by_llmcompressor(name, config)
    if why:
        raise Unsupported(
            f"{name} cannot be made into {to}: {why}. {instead(name, task, config)} {TABLE} lists what works"
        )


def lost_by_llmcompressor(name: str, config: Mapping[str, Any]) -> str:
    """Why nothing comes of llmcompressor: most of a decoder stays as it is, or vLLM lacks it; empty where neither is so."""
    if any(isinstance(config.get(key), int) and config[key] > 1 for key in EXPERTS):
        return "its experts are stacked in one tensor, which llmcompressor does not round"
    if name in CONVOLVED:
        return "its layers are no linear ones, which alone llmcompressor rounds"
    if name in OWN_LINEAR:
        return "its linear layers are a class of its own, which llmcompressor does not round"
    return "" if name in VLLM else "vLLM, which alone reads that, is not known to serve it"


def encoders_lack(model_type: str, to: str, known: frozenset[str] = ONNX_ENCODERS) -> str:
    """Why an encoder, or an encoder-decoder, cannot be made into ``to``; empty where it can."""
    if to not in FOR_ENCODERS:
        return f"encoders and encoder-decoders are made into {' or '.join(FOR_ENCODERS)}"
    if model_type in known:
        return ""
    return f"no test compares graphs of {model_type} with torch, only of {', '.join(sorted(known))}"


def kernels_lack(config: Mapping[str, Any]) -> str:
    """What a decoder of a known architecture asks for that onnxruntime's kernels, or the builder, have not; or nothing."""
    if config.get("qk_layernorm"):
        return "with qk_layernorm, onnxruntime-genai's builder leaves the norms of queries and keys out"
    if config.get("use_bidirectional_attention"):
        return "with use_bidirectional_attention, tokens look ahead, and the graph's do not"
    if config.get("model_type") == "gemma3_text" and config.get("attn_logit_softcapping"):
        return "with attn_logit_softcapping in Gemma 3, onnxruntime-genai's builder leaves the cap out"
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if activation not in ACTIVATIONS:
        return f"onnxruntime-genai's builder has no {activation}; it has {', '.join(ACTIVATIONS)}"
    head, turned = widths(config)
    if head % HEAD_MULTIPLE:
        return f"its heads are {head} numbers wide, and onnxruntime's attention takes multiples of {HEAD_MULTIPLE}"
    if turned % HEAD_MULTIPLE:
        return (
            f"rotary positions turn {turned} numbers of each head, and onnxruntime's attention takes multiples of "
            f"{HEAD_MULTIPLE}"
        )
    return ""


def widths(config: Mapping[str, Any]) -> tuple[int, int]:
    """How wide a head is, and how much of it rotary positions turn; zeros where config.json does not say."""
    kind = str(config.get("model_type"))
    head = config.get("head_dim") or HEAD_DIMS.get(kind)
    if not head:
        heads = config.get("num_attention_heads") or 0
        head = int(config.get("hidden_size") or 0) // heads if heads else 0
    rope = config.get("rope_parameters") or {}
    share = (
        rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or ROTARY_SHARES.get(kind, 1)
    )
    return int(head), int(head * share)


def instead(name: str, task: Task, config: Mapping[str, Any]) -> str:
    """What can be done with a model that cannot be made so."""
    if task != "generate":
        return "Its float weights stay as they are."
    if name in VLLM:
        made = "" if lost_by_llmcompressor(name, config) else ", and w8a8 and w4a16 are made for vLLM"
        return f"vLLM serves its float weights as they are{made}."
    return "vLLM serves the float weights of many architectures as they are: this one is not known to be among them."

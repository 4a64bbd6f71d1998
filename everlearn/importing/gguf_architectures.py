"""The GGUF architectures that compute what torch computes: their configuration and tensors, both ways.

llama.cpp computes an architecture in one way; what a configuration may say beyond that (another activation, a window that
it does not have, scaled positions of another kind) would be dropped in silence. So each key is known here, in either
direction, or the model is refused. Facts are those of llama.cpp's converter (``conversion/``) and its graphs.
"""

# pyright: basic
# numpy tells strict rules too little of its types.

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from everlearn.bundles.decoder_config import windows_of
from everlearn.errors import InvalidInput, Unsupported
from everlearn.importing.gguf_rope import read_rope, write_rope

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Family:
    """One of llama.cpp's architectures.

    ``plus_one``: norms are stored as 1 + weight. ``reordered``: the two halves of a head's rotary pairs are beside each
    other. ``scaled``: types of rotary positions. ``windows``: of layers, the period after which one sees everything.
    """

    name: str
    model_type: str
    architecture: str
    activation: str = "silu"
    plus_one: bool = False
    reordered: bool = False
    scaled: frozenset[str] = frozenset()
    windows: int = 0
    large: int = 0
    """Layers of the largest model, whose attention is scaled by hidden_size / heads instead of the head's width."""


FAMILIES: Mapping[str, Family] = {
    one.name: one
    for one in (
        Family(
            "llama", "llama", "LlamaForCausalLM", reordered=True, scaled=frozenset({"linear", "yarn", "llama3"})
        ),
        Family("qwen2", "qwen2", "Qwen2ForCausalLM", scaled=frozenset({"linear", "yarn"})),
        Family("qwen3", "qwen3", "Qwen3ForCausalLM", scaled=frozenset({"linear", "yarn"})),
        Family("phi3", "phi3", "Phi3ForCausalLM", scaled=frozenset({"longrope"})),
        Family("gemma", "gemma", "GemmaForCausalLM", "gelu_pytorch_tanh", plus_one=True),
        Family("gemma2", "gemma2", "Gemma2ForCausalLM", "gelu_pytorch_tanh", plus_one=True, windows=2, large=46),
        Family(
            "gemma3", "gemma3_text", "Gemma3ForCausalLM", "gelu_pytorch_tanh", plus_one=True,
            scaled=frozenset({"linear"}), windows=6, large=62,
        ),
    )
}  # fmt: skip
BY_ARCHITECTURE: Mapping[str, Family] = {
    **{one.architecture: one for one in FAMILIES.values()},
    "MistralForCausalLM": FAMILIES["llama"],
}
LOCAL_THETA = 10_000.0
"""Of Gemma 3's layers with a window."""

IGNORED = frozenset({"vocab_size", "rope.scaling.finetuned", "attention.value_length"})
"""Keys that say again what others say, or nothing of the numbers."""


def family_of(fields: Mapping[str, Any]) -> Family:
    """Raises Unsupported naming the architecture of a file that is not read."""
    name = fields.get("general.architecture")
    if name not in FAMILIES:
        raise Unsupported(
            f"the file holds a {str(name)[:80]!r} model; of GGUF, {', '.join(FAMILIES)} are read. "
            "Bring its original weights as safetensors"
        )
    return FAMILIES[str(name)]


def read_config(family: Family, fields: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of the model that ``fields`` describe; ``tensors``: float32 values of the small ones by name.

    Raises InvalidInput where a key is missing, Unsupported naming a key that is not known here.
    """
    said = {
        key.removeprefix(f"{family.name}."): value
        for key, value in fields.items()
        if key.startswith(f"{family.name}.")
    }
    try:
        heads, hidden = said.pop("attention.head_count"), said.pop("embedding_length")
        layers, inner = said.pop("block_count"), said.pop("feed_forward_length")
        eps, context = said.pop("attention.layer_norm_rms_epsilon"), said.pop("context_length")
    except KeyError as error:
        raise InvalidInput(f"the file has no {family.name}.{error.args[0]}") from None
    counts = {
        "attention.head_count": heads,
        "embedding_length": hidden,
        "block_count": layers,
        "context": context,
    }
    for key, value in {**counts, "feed_forward_length": inner}.items():
        if type(value) is not int or value < 1:
            raise Unsupported(
                f"{family.name}.{key} is {str(value)[:80]}; one whole number for all layers is read"
            )
    head = said.pop("attention.key_length", hidden // heads)
    groups = said.pop("attention.head_count_kv", heads)
    if type(groups) is not int or type(head) is not int or said.get("attention.value_length", head) != head:
        raise Unsupported(f"{family.name}: keys and values of several widths are not read")
    names = fields["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head,
        "rms_norm_eps": round_float32(eps),
        "max_position_embeddings": context,
        "vocab_size": said.pop("vocab_size", len(names)),
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act" if family.activation == "silu" else "hidden_activation": family.activation,
    }
    if family.name == "gemma":
        config["hidden_act"] = config.pop("hidden_activation")
    if family.windows:
        config |= read_windows(family, said, config)
    elif family.name == "phi3":
        config["sliding_window"] = said.pop("attention.sliding_window", 0) or None
        config["original_max_position_embeddings"] = said.get("rope.scaling.original_context_length", context)
    elif said.get("attention.sliding_window") == 0:
        del said["attention.sliding_window"]
    if family.name == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    rope = read_rope(family.name, said, tensors, head, family.scaled, context)
    config["rope_parameters"] = rope
    if family.name == "gemma3":
        theta = said.pop("rope.freq_base_swa", LOCAL_THETA)
        local = {"rope_type": "default", "rope_theta": theta}
        config["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    if said.get("attention.causal") is True:
        del said["attention.causal"]
    if unknown := sorted(said.keys() - IGNORED):
        raise Unsupported(
            f"{family.name}.{unknown[0]} is {str(said[unknown[0]])[:80]}: what that means is not known here"
        )
    return config


def read_windows(family: Family, said: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What Gemma 2 and 3 say of their layers, taken out of ``said``."""
    layers, hidden, heads = (
        config[key] for key in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    window = said.pop("attention.sliding_window", None)
    if window is None:
        raise InvalidInput(f"the file has no {family.name}.attention.sliding_window")
    pattern = said.pop("attention.sliding_window_pattern", family.windows)
    if pattern != family.windows and pattern != [(at + 1) % family.windows > 0 for at in range(layers)]:
        raise Unsupported(f"{family.name}: another order of layers with windows is not read")
    found: dict[str, Any] = {
        "sliding_window": window,
        "query_pre_attn_scalar": hidden // heads if layers == family.large else config["head_dim"],
        "layer_types": layer_types(family, layers),
    }
    if family.name == "gemma2":
        found["attn_logit_softcapping"] = said.pop("attn_logit_softcapping", 50.0)
        found["final_logit_softcapping"] = said.pop("final_logit_softcapping", 30.0)
    return found


def layer_types(family: Family, layers: int) -> list[str]:
    """Which of ``layers`` have a window."""
    kinds = ("full_attention", "sliding_attention")
    return [kinds[(at + 1) % family.windows > 0] for at in range(layers)]


def write_config(family: Family, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """GGUF's keys for a configuration, and tensors that belong to it.

    Raises Unsupported naming what llama.cpp would leave out.
    """
    refuse_lost(family, config)
    hidden, heads, context = (
        config[key] for key in ("hidden_size", "num_attention_heads", "max_position_embeddings")
    )
    head = config.get("head_dim") or hidden // heads
    fields: dict[str, Any] = {
        "block_count": config["num_hidden_layers"],
        "context_length": context,
        "embedding_length": hidden,
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config.get("num_key_value_heads") or heads,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": head,
        "attention.value_length": head,
        "vocab_size": config["vocab_size"],
    }
    rope = config["rope_parameters"]
    if family.windows:
        fields["attention.sliding_window"] = config["sliding_window"]
    if family.name == "phi3":
        fields["attention.sliding_window"] = 0  # llama.cpp has none for Phi 3
    if family.name == "gemma2":
        fields["attn_logit_softcapping"] = float(config["attn_logit_softcapping"])
        fields["final_logit_softcapping"] = float(config["final_logit_softcapping"])
    if family.name == "gemma3":
        rope = rope["full_attention"]
    scaled, tensors = write_rope(family.name, rope, head, family.scaled, config)
    return {f"{family.name}.{key}": value for key, value in (fields | scaled).items()}, tensors


def refuse_lost(family: Family, config: Mapping[str, Any]) -> None:
    """Raises Unsupported naming the first thing of ``config`` that llama.cpp does not compute for ``family``."""
    name = config["architectures"][0]

    def refuse(what: str) -> None:
        raise Unsupported(f"{name} with {what} is not written as GGUF: llama.cpp would leave that out")

    act = config.get("hidden_activation") or config.get("hidden_act") or family.activation
    act = "silu" if act == "swish" else act  # two names of one function
    if act != family.activation:
        refuse(f"the activation {act} (not {family.activation})")
    for key in ("attention_bias", "mlp_bias", "use_bidirectional_attention"):
        if config.get(key):
            refuse(f"{key} {config[key]}")
    context = config["max_position_embeddings"]
    if family.windows:
        if config.get("layer_types") not in (None, layer_types(family, config["num_hidden_layers"])):
            refuse("another order of layers with windows")
        whole = config["hidden_size"] // config["num_attention_heads"]
        scalar = whole if config["num_hidden_layers"] == family.large else config["head_dim"]
        if config["query_pre_attn_scalar"] != scalar:
            refuse(f"query_pre_attn_scalar {config['query_pre_attn_scalar']} (not {scalar})")
    elif seen := [one for one in windows_of(config) if one is not None and one < context]:
        refuse(f"a sliding window of {seen[0]} tokens (of a context of {context})")
    if family.name == "gemma2":
        if not config.get("attn_logit_softcapping") or not config.get("final_logit_softcapping"):
            refuse("no soft cap of its logits")
    elif config.get("attn_logit_softcapping") or config.get("final_logit_softcapping"):
        refuse("a soft cap of its logits")
    if family.name == "gemma3":
        local = config["rope_parameters"]["sliding_attention"]
        if local.get("rope_type", "default") != "default" or local["rope_theta"] != LOCAL_THETA:
            refuse(f"rotary positions {local} in layers with a window")


def read_tensor(family: Family, name: str, values: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """What torch's model has for the tensor ``name`` of a file, float32."""
    if family.plus_one and name.endswith("norm.weight"):
        return values - 1
    if count := rotary_heads(family, name, config):
        rest = values.shape[1:]
        return values.reshape(count, -1, 2, *rest).swapaxes(1, 2).reshape(values.shape)
    return values


def write_tensor(family: Family, name: str, values: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """What a file has as ``name`` for the tensor of torch's model: (heads, 2, half, in) becomes (heads, half, 2, in)."""
    if family.plus_one and name.endswith("norm.weight"):
        return values + 1
    if count := rotary_heads(family, name, config):
        rest = values.shape[1:]
        return values.reshape(count, 2, -1, *rest).swapaxes(1, 2).reshape(values.shape)
    return values


def rotary_heads(family: Family, name: str, config: Mapping[str, Any]) -> int:
    """Heads whose rows are in another order in a file; 0 where they are in the same."""
    if not family.reordered:
        return 0
    if ".attn_q." in name:
        return int(config["num_attention_heads"])
    return int(config["num_key_value_heads"]) if ".attn_k." in name else 0


def round_float32(value: float) -> float:
    """The shortest decimal number that float32 has as ``value``: 1e-06 instead of 9.999999974752427e-07."""
    return float(f"{value:.6g}") if math.isfinite(value) else value

"""The tensors that a plain decoder must have, by its config.json alone, without loading a library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from everlearn.bundles.decoder_config import is_tied
from everlearn.errors import InvalidInput
from everlearn.importing.loaded import is_old

LAYER = re.compile(r"layers\.(\d+)\.(.+)")
PLAIN_DECODERS = frozenset(
    {
        *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3"),
        *("granite", "olmo", "olmo2", "ernie4_5"),
    }
)
"""Model types whose layers are all alike, with the tensors of :func:`layer_tensors`."""
WIDE_HEADS: Mapping[str, int] = {
    "qwen3": 128,
    "ernie4_5": 128,
    "gemma": 256,
    "gemma2": 256,
    "gemma3_text": 256,
}
"""Width of a head where config.json does not say, of those that do not take it from the model's."""
BIASED_BY_ATTENTION_BIAS = PLAIN_DECODERS - {"mistral", "qwen2", "phi3", "ernie4_5"}
BIASED_BY_MLP_BIAS = frozenset({"llama", "granite", "smollm3"})
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

Shape = tuple[int, ...]


def check_plain(shapes: Mapping[str, list[int]], config: Mapping[str, Any]) -> None:
    """``shapes``: of every stored tensor, by name.

    Raises InvalidInput naming the first number of config.json that no model has, or the first tensor that is missing,
    of another shape, or left over.
    """
    check_sizes(config)
    stored = {name.removeprefix("model."): shape for name, shape in shapes.items() if not is_old(name)}
    count = config["num_hidden_layers"]
    check_layers(stored, count)
    expected = whole_tensors(config)
    for at in range(count):
        expected |= {f"layers.{at}.{part}": shape for part, shape in layer_tensors(config).items()}
    for name, shape in expected.items():
        full = name if name.startswith("lm_head") else f"model.{name}"
        if name not in stored:
            raise InvalidInput(f"the tensor {full} is missing: by config.json the model has it", param=full)
        if shape and stored[name] != list(shape):
            raise InvalidInput(
                f"{full} has the shape {stored[name]}; by config.json it is {list(shape)}", param=full
            )
    if surplus := stored.keys() - expected.keys() - {"lm_head.weight"}:
        first = min(surplus)
        full = first if first in shapes else f"model.{first}"
        raise InvalidInput(
            f"there is a tensor {full}, which the model of config.json has not: it would be left out",
            param=full,
        )


def check_sizes(config: Mapping[str, Any]) -> None:
    """Raises InvalidInput naming the first size that is missing or that no model has."""
    given = [key for key in ("num_key_value_heads", "head_dim") if config.get(key) is not None]
    for key in (*SIZES, *given):
        value = config.get(key)
        if type(value) is not int or value < 1:
            raise InvalidInput(
                f"config.json: {key} is {str(value)[:80]!r}, and must be a whole number from 1 on", param=key
            )
    heads, groups = config["num_attention_heads"], config.get("num_key_value_heads") or 1
    if heads % groups:
        raise InvalidInput(
            f"config.json: num_attention_heads is {heads}, no multiple of num_key_value_heads, which is {groups}",
            param="num_key_value_heads",
        )


def check_layers(stored: Mapping[str, list[int]], count: int) -> None:
    """Every layer is there, and no more. Raises InvalidInput naming the first that is not."""
    layers = {int(found[1]) for name in stored if (found := LAYER.fullmatch(name))}
    missing = next((at for at in range(count) if at not in layers), None)
    if missing is not None:
        raise InvalidInput(
            f"layer {missing} has no tensor, and config.json says num_hidden_layers is {count}",
            param="num_hidden_layers",
        )
    if len(layers) > count:
        raise InvalidInput(
            f"there are tensors of layer {min(at for at in layers if at >= count)}, and config.json says "
            f"num_hidden_layers is {count}: they would be left out",
            param="num_hidden_layers",
        )


def whole_tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Those that no layer has, without ``model.``; the output layer where it must be there."""
    kind, vocab, hidden = config["model_type"], config["vocab_size"], config["hidden_size"]
    named = config.get("architectures") or [""]
    tensors: dict[str, Shape] = {"embed_tokens.weight": (vocab, hidden)}
    if kind != "olmo":
        tensors["norm.weight"] = (hidden,)
    if not is_tied(config) and str(named[0]).endswith("ForCausalLM"):
        tensors["lm_head.weight"] = (vocab, hidden)
    return tensors


def layer_tensors(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Of one layer, by name; an empty shape where config.json does not determine it."""
    kind, hidden = config["model_type"], config["hidden_size"]
    tensors = projections(config)
    every = kind == "ernie4_5" and bool(config.get("use_bias"))
    biased = {f"self_attn.{one}_proj" for one in "qkv"} if kind == "qwen2" else set[str]()
    if every or (kind in BIASED_BY_ATTENTION_BIAS and config.get("attention_bias")):
        biased |= {name for name in tensors if name.startswith("self_attn.")}
    if every or (kind in BIASED_BY_MLP_BIAS and config.get("mlp_bias")):
        biased |= {name for name in tensors if name.startswith("mlp.")}
    return (
        {f"{name}.weight": shape for name, shape in tensors.items()}
        | {f"{name}.bias": tensors[name][:1] for name in biased}
        | {f"{name}.weight": (hidden,) for name in norms(kind)}
        | {f"self_attn.{name}.weight": shape for name, shape in head_norms(config).items()}
    )


def projections(config: Mapping[str, Any]) -> dict[str, Shape]:
    """The matrices of a layer; an empty shape where config.json does not determine it."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries, keys = widths(config)
    down = {"mlp.down_proj": (hidden, inner), "self_attn.o_proj": (hidden, queries) if queries else ()}
    if config["model_type"] == "phi3":
        both = (queries + 2 * keys, hidden) if queries and keys else ()
        return {"self_attn.qkv_proj": both, "mlp.gate_up_proj": (2 * inner, hidden), **down}
    of_keys: Shape = (keys, hidden) if keys else ()
    return {
        "self_attn.q_proj": (queries, hidden) if queries else (),
        "self_attn.k_proj": of_keys,
        "self_attn.v_proj": of_keys,
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        **down,
    }


def widths(config: Mapping[str, Any]) -> tuple[int, int]:
    """Of all queries, and of all keys; 0 where config.json does not determine it."""
    kind, heads = config["model_type"], config["num_attention_heads"]
    head = config.get("head_dim") or WIDE_HEADS.get(kind) or config["hidden_size"] // heads
    if "head_dim" in config and config["head_dim"] is None and kind in WIDE_HEADS:
        head = 0
    return heads * head, (config.get("num_key_value_heads") or 0) * head


def norms(kind: str) -> tuple[str, ...]:
    """Those of a layer that are as wide as the model."""
    after = ("post_attention_layernorm", "post_feedforward_layernorm")
    if kind == "olmo":
        return ()
    if kind == "olmo2":
        return after
    return ("input_layernorm", *after, "pre_feedforward_layernorm")[
        : 4 if kind in ("gemma2", "gemma3_text") else 2
    ]


def head_norms(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Those of queries and keys: of each head, or of all of them."""
    kind, (queries, keys) = config["model_type"], widths(config)
    if kind == "olmo2":
        return {"q_norm": (queries,) if queries else (), "k_norm": (keys,) if keys else ()}
    if kind in ("qwen3", "gemma3_text"):
        head: Shape = (queries // config["num_attention_heads"],) if queries else ()
        return {"q_norm": head, "k_norm": head}
    return {}

"""Open a bundle's safetensors in JAX and predict with it: Llama, Mistral, Qwen2 and Qwen3 as plain functions.

    weights, config = load("folder")
    scores, _ = logits(weights, config, ids)          # ids: int32 (1, seq)
    print(greedy(weights, config, ids, tokens=20))

Needs jax, numpy and safetensors, and nothing of everlearn: `everlearn deploy convert --to jax` puts a copy of this file
beside the weights. Computes in float32.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.flax import load_file

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ACTIVATIONS = {"silu": jax.nn.silu, "gelu": lambda x: jax.nn.gelu(x, approximate=False)}
Weights = dict[str, jax.Array]
Cache = list[tuple[jax.Array, jax.Array]]


def load(folder: str | Path) -> tuple[Weights, dict[str, Any]]:
    """Every tensor in float32 by its name, and config.json. Raises ValueError for a model that this file has not."""
    config: dict[str, Any] = json.loads((Path(folder) / "config.json").read_bytes())
    if config["model_type"] not in FAMILIES:
        raise ValueError(f"model_type {config['model_type']!r} is none of {', '.join(FAMILIES)}")
    if config.get("hidden_act", "silu") not in ACTIVATIONS:
        raise ValueError(f"hidden_act {config['hidden_act']!r} is none of {', '.join(ACTIVATIONS)}")
    rotations(config)
    weights: Weights = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        weights |= {name: tensor.astype(jnp.float32) for name, tensor in load_file(file).items()}
    return weights, config


def rotations(config: dict[str, Any]) -> jax.Array:
    """What each pair of a head turns by per token, (head_size / 2,). Raises ValueError for an unknown type."""
    said = config.get("rope_parameters") or {
        "rope_theta": config.get("rope_theta", 10000.0),
        **(config.get("rope_scaling") or {}),
    }
    kind, size = said.get("rope_type", "default"), head_size(config)
    turns = said["rope_theta"] ** -(np.arange(0, size, 2) / size)
    if kind == "linear":
        turns = turns / said["factor"]
    elif kind == "llama3":  # long waves are slowed, short ones stay, between them both are mixed
        waves = said["original_max_position_embeddings"] * turns / (2 * math.pi)
        low, high = said["low_freq_factor"], said["high_freq_factor"]
        kept = np.clip((waves - low) / (high - low), 0, 1)
        turns = (1 - kept) * turns / said["factor"] + kept * turns
    elif kind != "default":
        raise ValueError(f"rope_type {kind!r} is none of default, linear, llama3")
    return jnp.asarray(turns, jnp.float32)


def head_size(config: dict[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def new_cache(config: dict[str, Any], length: int) -> Cache:
    """Room for the keys and values of ``length`` tokens of one text."""
    shape = (1, config["num_key_value_heads"], length, head_size(config))
    return [(jnp.zeros(shape), jnp.zeros(shape)) for _ in range(config["num_hidden_layers"])]


def logits(
    weights: Weights, config: dict[str, Any], ids: Any, cache: Cache | None = None, start: Any = 0
) -> tuple[jax.Array, Cache]:
    """ids: int (1, seq), which stand at ``start`` and after it; returns (1, seq, vocabulary), and the filled cache."""
    cache = cache or new_cache(config, ids.shape[1])
    filled: Cache = []
    x = weights["model.embed_tokens.weight"][ids]  # (1, seq, hidden)
    for at, kept in enumerate(cache):
        name = f"model.layers.{at}"
        y = norm(weights, f"{name}.input_layernorm", config, x)
        y, kept = attention(weights, f"{name}.self_attn", config, y, kept, start, at)
        x = x + y
        y = norm(weights, f"{name}.post_attention_layernorm", config, x)
        gate = ACTIVATIONS[config.get("hidden_act", "silu")](linear(weights, f"{name}.mlp.gate_proj", y))
        x = x + linear(weights, f"{name}.mlp.down_proj", gate * linear(weights, f"{name}.mlp.up_proj", y))
        filled.append(kept)
    head = "lm_head" if "lm_head.weight" in weights else "model.embed_tokens"
    return linear(weights, head, norm(weights, "model.norm", config, x)), filled


def attention(
    weights: Weights, name: str, config: dict[str, Any], x: jax.Array, kept: Any, start: Any, at: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """x: (1, seq, hidden). Grouped-query attention over what is kept, and this; returns both anew."""
    queries, groups, size = config["num_attention_heads"], config["num_key_value_heads"], head_size(config)

    def heads(part: str, count: int) -> jax.Array:  # (1, count, seq, size)
        y = linear(weights, f"{name}.{part}_proj", x).reshape(1, -1, count, size)
        y = norm(weights, f"{name}.{part}_norm", config, y) if f"{name}.{part}_norm.weight" in weights else y
        return y.swapaxes(1, 2)

    places = start + jnp.arange(x.shape[1])
    angles = places[:, None] * rotations(config)  # (seq, size / 2)
    new = turn(heads("k", groups), angles), heads("v", groups)
    put = jax.lax.dynamic_update_slice
    keys, values = (put(old, one, (0, 0, start, 0)) for old, one in zip(kept, new, strict=True))
    q = turn(heads("q", queries), angles).reshape(1, groups, queries // groups, -1, size)
    scores = jnp.einsum("bgnqs,bgks->bgnqk", q, keys) / math.sqrt(size)
    back = places[:, None] - jnp.arange(keys.shape[2])  # how far each key lies behind each query
    seen = (back >= 0) & (back < window(config, at))
    shares = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    mixed = jnp.einsum("bgnqk,bgks->bgnqs", shares, values)
    mixed = mixed.reshape(1, queries, -1, size).swapaxes(1, 2).reshape(1, x.shape[1], -1)
    return linear(weights, f"{name}.o_proj", mixed), (keys, values)


def window(config: dict[str, Any], at: int) -> int | float:
    """Tokens that the layer sees back, itself included."""
    kinds = config.get("layer_types")
    slides = kinds[at] == "sliding_attention" if kinds else config["model_type"] == "mistral"
    return (config.get("sliding_window") if slides else None) or math.inf


def turn(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotates each head's pairs (i, i + size / 2); x: (1, heads, seq, size)."""
    one, other = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)


def norm(weights: Weights, name: str, config: dict[str, Any], x: jax.Array) -> jax.Array:
    mean = jnp.square(x).mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(mean + config["rms_norm_eps"]) * weights[f"{name}.weight"]


def linear(weights: Weights, name: str, x: jax.Array) -> jax.Array:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def greedy(weights: Weights, config: dict[str, Any], ids: Any, tokens: int) -> list[int]:
    """The most likely next tokens, each after the other; ids: int (1, seq)."""
    step = jax.jit(lambda ids, cache, start: logits(weights, config, ids, cache, start))
    cache, start, found = new_cache(config, ids.shape[1] + tokens), 0, []
    for _ in range(tokens):
        scores, cache = step(ids, cache, start)
        start += ids.shape[1]
        ids = scores[:, -1:].argmax(-1)
        found.append(int(ids[0, 0]))
    return found

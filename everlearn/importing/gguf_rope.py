"""Rotary positions in a GGUF file: transformers' ``rope_parameters`` of each type, and what llama.cpp has for it.

``linear`` and ``yarn`` are keys; Llama 3's are a factor per frequency, and Phi 3's two, as tensors.
"""

# pyright: basic
# numpy tells strict rules too little of its types.

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from everlearn.errors import InvalidInput, Unsupported

if TYPE_CHECKING:
    import numpy as np

FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
TENSORS = frozenset({FREQUENCIES, LONG, SHORT})
LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0
"""``low_freq_factor`` and ``high_freq_factor`` of every Llama 3; a file has only what comes of them."""
LLAMA3_CONTEXTS = tuple(2**power for power in range(6, 20))
OLD_CONTEXT = "original_max_position_embeddings"
YARN_DEFAULTS = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}
KNOWN = frozenset(
    {"rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "partial_rotary_factor"}
)


def read_rope(
    name: str,
    said: dict[str, Any],
    tensors: Mapping[str, Any],
    head: int,
    known: Collection[str],
    context: int,
) -> dict[str, Any]:
    """``rope_parameters``; takes the keys out of ``said``. Raises Unsupported, InvalidInput."""
    theta = said.pop("rope.freq_base", 10_000.0)
    width = said.pop("rope.dimension_count", head)
    kind = said.pop("rope.scaling.type", None)
    factor = said.pop("rope.scaling.factor", None) or said.pop("rope.scale_linear", None) or 1.0
    original = said.pop("rope.scaling.original_context_length", None)
    attention = said.pop("rope.scaling.attn_factor", None)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if width != head:
        if name != "phi3":
            raise Unsupported(f"{name}.rope.dimension_count is {width}, and a head is {head} wide")
        rope["partial_rotary_factor"] = width / head
    if FREQUENCIES in tensors:
        found = llama3_of(tensors[FREQUENCIES], theta, head) if "llama3" in known else None
        if found is None or factor != 1.0:
            raise Unsupported(f"{FREQUENCIES} scales rotary positions in a way that is not known here")
        return rope | found
    if LONG in tensors or SHORT in tensors:
        if "longrope" not in known or not {LONG, SHORT} <= tensors.keys() or not original:
            raise Unsupported(f"{LONG} and {SHORT} are read of Phi 3 alone, with their original context")
        factors = {"long_factor": tensors[LONG].tolist(), "short_factor": tensors[SHORT].tolist()}
        scale = {"factor": context / original, "attention_factor": attention or 1.0}
        return (
            rope | {"rope_type": "longrope", "original_max_position_embeddings": original} | factors | scale
        )
    if kind in (None, "none") and factor == 1.0:
        return rope
    kind = kind or "linear"
    if kind not in known or (kind == "yarn" and not original):
        raise Unsupported(f"{name}: rotary positions of type {str(kind)[:40]!r} are not read")
    if attention not in (None, 1.0):
        raise Unsupported(
            f"{name}.rope.scaling.attn_factor is {attention}: what that means is not known here"
        )
    scaled: dict[str, Any] = {"rope_type": kind, "factor": factor}
    return rope | scaled | ({"original_max_position_embeddings": original} if kind == "yarn" else {})


def write_rope(
    name: str, rope: Mapping[str, Any], head: int, known: Collection[str], config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """GGUF's keys, without the architecture's name before them, and tensors. Raises Unsupported."""
    import numpy as np

    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in known and kind != "default":
        possible = ", ".join(sorted(known)) or "none"
        raise Unsupported(
            f"rotary positions of type {kind} are not written as GGUF for {name}; of scaled ones, {possible} are"
        )
    width = int(head * rope.get("partial_rotary_factor", 1.0))
    if width != head and name != "phi3":
        raise Unsupported(
            f"rotary positions on {width} of a head's {head} numbers are not written as GGUF for {name}"
        )
    fields: dict[str, Any] = {
        "rope.freq_base": float(rope.get("rope_theta", 10_000.0)),
        "rope.dimension_count": width,
    }
    if kind in ("linear", "yarn"):
        factor = rope.get("factor")
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise Unsupported(
                f"rotary positions of type {kind} with factor {factor} are not written as GGUF: it is a number"
            )
        fields |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        refuse_other_yarn(rope)
        original = rope.get("original_max_position_embeddings")
        fields["rope.scaling.original_context_length"] = int(original or config["max_position_embeddings"])
    if kind == "llama3":
        factors = llama3_factors(rope, head).astype(np.float32)
        if llama3_of(factors, float(rope.get("rope_theta", 10_000.0)), head) is None:
            said = {key: rope[key] for key in ("low_freq_factor", "high_freq_factor", OLD_CONTEXT)}
            raise Unsupported(
                f"rotary positions of type llama3 with {said} are not written as GGUF: none read them back"
            )
        return fields, {FREQUENCIES: factors}
    context = config["max_position_embeddings"]
    key = "original_max_position_embeddings"
    original = int(rope.get(key) or config.get(key) or context)
    if name == "phi3":
        fields["rope.scaling.original_context_length"] = original
    if kind == "longrope":
        scale = rope.get("factor") or context / original
        usual = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        fields["rope.scaling.attn_factor"] = float(rope.get("attention_factor") or usual)
        pairs = ((LONG, "long_factor"), (SHORT, "short_factor"))
        return fields, {ours: np.array(rope[theirs], dtype=np.float32) for ours, theirs in pairs}
    return fields, {}


def refuse_other_yarn(rope: Mapping[str, Any]) -> None:
    """Raises Unsupported where YaRN's constants are others than llama.cpp's."""
    usual = {
        **YARN_DEFAULTS,
        "attention_factor": 0.1 * math.log(rope["factor"]) + 1 if rope["factor"] > 1 else 1.0,
    }
    for key, value in rope.items():
        if key in KNOWN or value is None:
            continue
        if key not in usual or abs(float(value) - usual[key]) > 1e-6:
            raise Unsupported(f"rotary positions of type yarn with {key} {value} are not written as GGUF")


def llama3_factors(rope: Mapping[str, Any], head: int) -> np.ndarray:
    """What each of a head's frequencies is divided by, float64 (head / 2), as transformers computes it."""
    import numpy as np

    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(rope["original_max_position_embeddings"])
    frequencies = 1.0 / float(rope.get("rope_theta", 10_000.0)) ** (np.arange(0, head, 2) / head)
    waves = 2 * math.pi / frequencies
    smooth = (context / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    return np.where(waves < context / high, 1.0, np.where(waves > context / low, factor, between))


def llama3_of(factors: Any, theta: float, head: int) -> dict[str, Any] | None:
    """The parameters that give ``factors`` (float32, head / 2), where there are such; None where they are others."""
    import numpy as np

    if factors.shape != (head // 2,):
        raise InvalidInput(f"{FREQUENCIES} has the shape {list(factors.shape)}, not {[head // 2]}")
    for context in LLAMA3_CONTEXTS:
        rope = {
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": float(f"{factors.max():.6g}"),
            "low_freq_factor": LLAMA3_LOW,
            "high_freq_factor": LLAMA3_HIGH,
            "original_max_position_embeddings": context,
        }
        if np.allclose(llama3_factors(rope, head), factors, rtol=1e-5, atol=0):
            return rope
    return None

"""Attention in the graph of onnxruntime-genai's builder, made as the model's own code has it, layer by layer.

The builder reads configurations as transformers 4 wrote them: it drops some scalings of rotary positions, refuses others,
leaves some windows out, and rounds its own tables. So it is given plain positions (:func:`told_plainly`), and what each
layer really does is taken from the model that torch runs (:func:`attentions_of`) and written into the graph.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from compress.targets.quantized_graph import constant, named
from everlearn.bundles.decoder_config import windows_of
from everlearn.errors import Unsupported
from train.evaluate.held_out_text import tokens_at_once

NODE = re.compile(r"/model/layers\.(\d+)/attn/GroupQueryAttention")
COSINES, SINES = 7, 8
"""Inputs of GroupQueryAttention."""


@dataclass(frozen=True)
class Attention:
    """How one layer looks back.

    ``window``: tokens, its own among them; None for all. ``frequencies``: radians a position, float32 (pairs,); None
    where it has no rotary positions. ``scale``: what their cosines and sines are multiplied with.
    """

    window: int | None
    frequencies: np.ndarray | None
    scale: float = 1.0


def attentions_of(model: Any) -> list[Attention]:
    """Of each layer of a transformers causal language model that was loaded and has not run yet."""
    config, decoder = model.config, model.get_decoder()
    windows = windows_of(config.to_dict())
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    found: list[Attention] = []
    for layer, window, kind in zip(decoder.layers, windows, kinds, strict=True):
        frequencies, scale = rotary_of(decoder.rotary_emb, kind)
        turned = bool(getattr(layer.self_attn, "use_rope", True))
        found.append(Attention(window, frequencies if turned else None, scale))
    return found


def rotary_of(rotary: Any, kind: str) -> tuple[np.ndarray, float]:
    """Frequencies, float32 (pairs,), and scale of layers of this kind, from transformers' module of rotary positions."""
    prefix = f"{kind}_" if hasattr(rotary, f"{kind}_inv_freq") else ""
    frequencies = getattr(rotary, f"{prefix}inv_freq").float().numpy()
    return frequencies, float(getattr(rotary, f"{prefix}attention_scaling", 1.0))


def context_of(config: Any) -> int:
    """How many tokens one table of rotary positions is right for: no cache of keys can be turned anew.

    ``dynamic`` positions are plain that far: they scale texts that are longer than max_position_embeddings.
    """
    return tokens_at_once(config.to_dict()) or int(config.max_position_embeddings)


def told_plainly(config: Any) -> None:
    """Changes ``config`` into one that the builder makes plain positions of, every layer turned and none windowed."""
    config.max_position_embeddings = context_of(config)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    if config.model_type == "gemma3_text":
        config.rope_local_base_freq = 10000.0
    if config.model_type == "smollm3":
        config.no_rope_layers = [1] * config.num_hidden_layers
    if config.model_type == "phi3":
        config.original_max_position_embeddings = config.max_position_embeddings


def write_attention(graph: ir.Graph, attentions: list[Attention], positions: int) -> None:
    """Every layer of ``graph`` turns and looks back as ``attentions`` say; tables have ``positions`` rows.

    Raises Unsupported where the graph's layers are not these.
    """
    nodes = {int(found[1]): node for node in graph if (found := NODE.fullmatch(node.name or ""))}
    if sorted(nodes) != list(range(len(attentions))):
        raise Unsupported("this architecture's graph has other attention than GroupQueryAttention")
    before = {one for node in nodes.values() for one in node.inputs[COSINES : SINES + 1] if one is not None}
    tables: dict[tuple[bytes, float], tuple[ir.Value, ir.Value]] = {}
    for at, attention in enumerate(attentions):
        node = nodes[at]
        node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", attention.window or -1)
        node.attributes["do_rotary"] = ir.AttrInt64("do_rotary", int(attention.frequencies is not None))
        node.resize_inputs(max(len(node.inputs), SINES + 1))
        table: tuple[ir.Value | None, ir.Value | None] = None, None
        if attention.frequencies is not None:
            key = attention.frequencies.tobytes(), attention.scale
            if key not in tables:
                tables[key] = rotary_table(graph, attention, positions, str(len(tables) or ""))
            table = tables[key]
        node.replace_input_with(COSINES, table[0])
        node.replace_input_with(SINES, table[1])
    for value in before:
        if value.name in graph.initializers and not value.uses():
            del graph.initializers[value.name]


def rotary_table(
    graph: ir.Graph, attention: Attention, positions: int, suffix: str
) -> tuple[ir.Value, ir.Value]:
    """Cosines and sines, float32 (positions, pairs), computed when onnxruntime loads the graph: constants that it folds."""
    assert attention.frequencies is not None
    made = {
        "first": np.float32(0),
        "end": np.float32(positions),
        "step": np.float32(1),
        "column": np.array([-1, 1]),
        "frequencies": attention.frequencies[None],
        "scale": np.float32(attention.scale),
    }
    held = {
        key: constant(graph, ir.tensor(value, name=f"rotary{suffix}.{key}")) for key, value in made.items()
    }
    rows = ir.node("Range", [held["first"], held["end"], held["step"]])
    column = ir.node("Reshape", [rows.outputs[0], held["column"]])
    angles = ir.node("Mul", [column.outputs[0], held["frequencies"]])
    graph.insert_before(graph[0], [rows, column, angles])
    found: list[ir.Value] = []
    for op in ("Cos", "Sin"):
        node = ir.node(op, angles.outputs)
        scaled = ir.node("Mul", [node.outputs[0], held["scale"]])
        graph.insert_after(angles, [node, scaled])
        shape = (positions, len(attention.frequencies))
        found.append(named(scaled, f"rotary{suffix}.{op.lower()}", ir.DataType.FLOAT, shape))
    return found[0], found[1]

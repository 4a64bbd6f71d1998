"""An encoder-decoder's two graphs as one folder: tensors with names of their own, and what an answer begins and ends with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onnx import GraphProto, ModelProto

from deploy.edge.manifest import EncoderDecoderGraph, Generation
from deploy.edge.targets import LOGITS, PAST
from deploy.edge.weights import Content, contents_of
from everlearn.bundles.contents import read_json_object
from everlearn.chat.stops import stops_of
from everlearn.errors import Corrupt

SETTINGS = ("config.json", "generation_config.json")


def shared_contents(models: Mapping[str, ModelProto], bundle: Path) -> dict[str, Content]:
    """The tensors of all of ``models``, renamed in place by their graph; one that two graphs have is there once.

    T5's embedding is in both of its graphs.
    """
    contents: dict[str, Content] = {}
    known: dict[tuple[Any, ...], str] = {}
    for file, model in models.items():
        names: dict[str, str] = {}
        tensors = {one.name: one for one in model.graph.initializer}
        for name, content in contents_of(model, bundle).items():
            digest = hashlib.sha256()
            for chunk in content.chunks():
                digest.update(chunk)
            key = (tensors[name].data_type, tuple(tensors[name].dims), digest.digest())
            names[name] = known.setdefault(key, f"{file.removesuffix('_model.onnx')}.{name}")
            contents.setdefault(names[name], content)
        rename(model.graph, names)
    return contents


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Initializers, and where nodes read them, in graphs within as well."""
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                rename(inner, names)


def encoder_decoder_graph(decoder: ModelProto, bundle: Path) -> EncoderDecoderGraph:
    """Shapes as the decoder's graph says them, and the rest of the configs. Raises Corrupt where no token begins answers."""
    config = read_json_object(bundle / "config.json")
    said = settings_of(bundle)
    first = [
        said[name] for name in ("decoder_start_token_id", "forced_bos_token_id") if said.get(name) is not None
    ]
    if not first:
        raise Corrupt(f"{bundle.name}: config.json names no decoder_start_token_id")
    pasts = [one for one in decoder.graph.input if one.name.startswith(PAST) and ".decoder." in one.name]
    (logits,) = (one for one in decoder.graph.output if one.name == LOGITS)
    _, heads, _, size = pasts[0].type.tensor_type.shape.dim
    return EncoderDecoderGraph(
        layers=len(pasts) // 2,
        heads=heads.dim_value,
        head_size=size.dim_value,
        vocabulary=logits.type.tensor_type.shape.dim[2].dim_value
        or config.get("decoder_vocab_size")
        or config["vocab_size"],
        context=config["max_length"],
        first=first,
        never=[one[0] for one in said.get("bad_words_ids") or [] if len(one) == 1],
    )


def generation_of(bundle: Path) -> Generation:
    """What ends an answer: greedy unless generation_config.json says ``do_sample``."""
    said = settings_of(bundle)
    sampling: dict[str, Any] = {"temperature": 0.0, "top_k": 0}
    if said.get("do_sample"):
        sampling["temperature"] = 1.0
        sampling |= {
            name: said[name] for name in ("temperature", "top_k", "top_p") if said.get(name) is not None
        }
    ends = [*as_list(said.get("eos_token_id")), *stops_of(bundle).ids]
    return Generation(eos_token_ids=list(dict.fromkeys(ends)), **sampling)


def as_list(ids: int | Iterable[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def settings_of(bundle: Path) -> dict[str, Any]:
    """config.json, and over it generation_config.json."""
    config, generation = (bundle / name for name in SETTINGS)
    return read_json_object(config) | (read_json_object(generation) if generation.is_file() else {})

"""What a folder is going to hold, known to the byte before anything of it is written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from deploy.edge.int8 import round_to_int8
from deploy.edge.last_logits import keep_last_logits
from deploy.edge.manifest import (
    WEBGPU_GRAPH,
    DecoderGraph,
    EncoderGraph,
    Generation,
    Graph,
    HeadGraph,
)
from deploy.edge.qdq import dequantize_once
from deploy.edge.seq2seq import SETTINGS, encoder_decoder_graph, generation_of, shared_contents
from deploy.edge.targets import (
    GRAPH,
    LOGITS,
    OUTPUTS,
    PAST,
    TARGETS,
    TWO_GRAPHS,
    EdgeTarget,
    FormName,
    graphs_of,
)
from deploy.edge.weights import Content, Placed, contents_of, place, refer_to
from everlearn.bundles.contents import read_json_object
from everlearn.errors import Unsupported
from everlearn.registry.records import Version

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
GENAI_CONFIG = "genai_config.json"
FP32 = "float32"


@dataclass
class Plan:
    """A folder before it is written. ``models``: its graphs, by file; ``files``: the content, or the file to copy, of all but
    the weights."""

    version: Version
    target: str
    form: FormName
    models: dict[str, ModelProto]
    contents: dict[str, Content]
    graph: Graph
    parts: list[Placed] = field(default_factory=list[Placed])
    files: dict[str, bytes | Path] = field(default_factory=dict[str, bytes | Path])
    generation: Generation | None = None

    @property
    def of(self) -> EdgeTarget:
        return TARGETS[self.target]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file but edge.json."""
        small = {
            name: len(one) if isinstance(one, bytes) else one.stat().st_size
            for name, one in self.files.items()
        }
        return small | {part.name: part.size_bytes for part in self.parts}

    @property
    def download_bytes(self) -> int:
        return sum(self.sizes.values())


def plan(version: Version, bundle: Path, target: str, form: FormName) -> Plan:
    """Rewrites the graph in memory; weights are neither read nor written.

    Raises Unsupported for a version that has no such form.
    """
    refuse_version(version, target)
    models = {
        name: onnx.load(str(bundle / name), load_external_data=False) for name in graphs_of(version.task)
    }
    made = {"generate": plan_decoder, "text2text": plan_encoder_decoder}.get(version.task, plan_encoder)
    planned = made(version, bundle, target, form, models)
    planned.parts = place(models.values(), planned.contents)
    if form == "int4-qdq":  # the same bytes, as WebGPU multiplies them
        other = onnx.load(str(bundle / GRAPH), load_external_data=False)
        keep_last_logits(other)
        round_nothing(other)
        refer_to(other, planned.parts)
        planned.files[WEBGPU_GRAPH] = serialized(other)
    planned.files |= {name: serialized(model) for name, model in models.items()}
    for name in TOKENIZER:
        if (bundle / name).is_file():
            planned.files[name] = bundle / name
    return planned


def refuse_version(version: Version, target: str) -> None:
    """Raises Unsupported for a version that is no ONNX graph."""
    if version.format not in ("onnx-genai", "onnx"):
        to = "int4-onnx" if version.task == "generate" else "int8-onnx"
        raise Unsupported(
            f"{version.ref} is {version.format}, and {target} takes an ONNX version: "
            f"everlearn compress {version.model} --to {to}"
        )


def plan_decoder(
    version: Version, bundle: Path, target: str, form: FormName, models: dict[str, ModelProto]
) -> Plan:
    model = models[GRAPH]
    if not any(node.op_type == "MatMulNBits" for node in model.graph.node):
        raise Unsupported(
            f"{version.ref} has no weights of 4 or 8 bits in blocks, which the form {form} is made of: "
            f"everlearn compress {version.model} --to int4-onnx"
        )
    config = read_json_object(bundle / GENAI_CONFIG)
    contents = contents_of(model, bundle)
    keep_last_logits(model)
    if form == "int4-qdq":
        dequantize_once(model)
    elif form == "int8-dynamic":
        round_to_int8(model, contents)
    graph = decoder_graph(model, config["model"], TARGETS[target].context)
    made = Plan(version, target, form, models, contents, graph, generation=generation(config))
    if target != "web":
        made.files[GENAI_CONFIG] = json.dumps(
            shorter(config, graph.context), indent=4, sort_keys=True
        ).encode()
    return made


def plan_encoder(
    version: Version, bundle: Path, target: str, form: FormName, models: dict[str, ModelProto]
) -> Plan:
    model = models[GRAPH]
    refuse_float(version, form, model)
    config = read_json_object(bundle / "config.json")
    outputs = {one.name: one for one in model.graph.output}
    if missing := [name for name in OUTPUTS[version.task] if name not in outputs]:
        raise Unsupported(
            f"{version.ref}: its graph computes {', '.join(outputs)}, not {', '.join(missing)}: compress it again"
        )
    dims = outputs[OUTPUTS[version.task][0]].type.tensor_type.shape.dim
    graph: Graph
    if version.task == "embed":
        graph = EncoderGraph(context=config["max_length"], hidden=dims[-1].dim_value or config["hidden_size"])
    else:
        graph = head_graph(config)
        computed, named = dims[-1].dim_value, len(graph.labels)
        if version.task in ("classify", "token_classify") and computed not in (0, named):
            raise Unsupported(
                f"{version.ref}: its graph computes {computed} labels, and id2label in its config.json names {named}"
            )
    made = Plan(version, target, form, models, contents_of(model, bundle), graph)
    made.files["config.json"] = bundle / "config.json"
    return made


def plan_encoder_decoder(
    version: Version, bundle: Path, target: str, form: FormName, models: dict[str, ModelProto]
) -> Plan:
    decoder = models[TWO_GRAPHS[1]]
    refuse_float(version, form, decoder)
    graph = encoder_decoder_graph(decoder, bundle)
    contents = shared_contents(models, bundle)
    made = Plan(version, target, form, models, contents, graph, generation=generation_of(bundle))
    made.files |= {name: bundle / name for name in SETTINGS if (bundle / name).is_file()}
    return made


def refuse_float(version: Version, form: FormName, model: ModelProto) -> None:
    """Raises Unsupported where no product has weights of 8 bits."""
    if not any(node.op_type == "MatMulInteger" for node in model.graph.node):
        raise Unsupported(
            f"{version.ref} has no weights of 8 bits, which the form {form} is made of: "
            f"everlearn compress {version.model} --to int8-onnx"
        )


def head_graph(config: dict[str, Any]) -> HeadGraph:
    """The labels, as config.json names them."""
    named = config.get("id2label", {})
    return HeadGraph(
        context=config["max_length"],
        labels=[named[key] for key in sorted(named, key=int)],
        multi_label=config.get("problem_type") == "multi_label_classification",
    )


def round_nothing(model: ModelProto) -> None:
    """Lets MatMulNBits multiply in float32, in place: with activations rounded to 8 bits, logits are one off."""
    for node in model.graph.node:
        for one in node.attribute:
            if one.name == "accuracy_level":
                one.i = 0


def serialized(model: ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def decoder_graph(model: ModelProto, config: dict[str, Any], context: int) -> DecoderGraph:
    """Shapes, as onnxruntime-genai's configuration and the graph itself say them."""
    decoder = config["decoder"]
    pasts = [one for one in model.graph.input if one.name.startswith(PAST)]
    (logits,) = (one for one in model.graph.output if one.name == LOGITS)
    cache = onnx.TensorProto.DataType.Name(pasts[0].type.tensor_type.elem_type).lower()
    return DecoderGraph(
        layers=decoder["num_hidden_layers"],
        kv_heads=decoder["num_key_value_heads"],
        head_size=decoder["head_size"],
        vocabulary=logits.type.tensor_type.shape.dim[2].dim_value,
        context=min(context, config["context_length"]),
        hidden=decoder["hidden_size"],
        cache={"float": FP32}.get(cache, cache),
    )


def shorter(config: dict[str, Any], context: int) -> dict[str, Any]:
    """onnxruntime-genai's configuration with room for ``context`` tokens: it allocates all of them at once."""
    config["model"]["context_length"] = context
    config["search"]["max_length"] = context
    return config


def generation(config: dict[str, Any]) -> Generation:
    """Stops and sampling, as genai_config.json says them."""
    model, search = config["model"], config["search"]
    stops = model["eos_token_id"]
    sampling = {key: search[key] for key in ("temperature", "top_k", "top_p") if key in search}
    if not search.get("do_sample", False):
        sampling["temperature"] = 0.0
    return Generation(
        eos_token_ids=stops if isinstance(stops, list) else [stops],
        bos_token_id=model.get("bos_token_id"),
        **sampling,
    )

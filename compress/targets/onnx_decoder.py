"""One ONNX decoder: its weights quantized, onnxruntime-genai's model builder. Run as a child process.

Weights stay in their file (:mod:`compress.quantize.mapped`), quantized ones in ``scratch``, so that a model larger than memory is
built, and what an interrupted run quantized is there when it is started again.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.measure.parent_divergence import keep_carried, keep_reference
from compress.targets.architectures import architecture_of
from everlearn.bundles.contents import read_json_object
from everlearn.bundles.durable import write_file
from everlearn.errors import Unsupported
from everlearn.processes.child import answer
from everlearn.progress import Progress

if TYPE_CHECKING:
    from compress.quantize.matrices import Matrices

BITS = {"int4": 4, "int8": 8}


def build_onnx_decoder(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Exports ``model_dir`` to ``directory``: how it was ``made``. In ``reference`` is what the export is measured by.

    Raises Unsupported where the builder, or GPTQ, does not take the model.
    """
    model_dir, directory = Path(request["model_dir"]), Path(request["directory"])
    progress("loading torch", None)
    from compress.quantize.mapped import give_back
    from compress.targets.attention_graph import attentions_of, context_of, write_attention
    from compress.targets.quantized_graph import quantize_graph, save_graph, share_embedding

    matrices, made, shared = None, dict[str, Any](), False
    attentions, positions = [], 0
    if request["precision"] in BITS:
        matrices, made = quantize(model_dir, request, progress)

    def load() -> Any:
        nonlocal attentions, positions
        model = stand_in(model_dir, matrices)
        attentions, positions = attentions_of(model), context_of(model.config)
        return model

    def write(graph: Any) -> None:
        nonlocal shared
        if matrices is not None:
            quantize_graph(graph, matrices)
            shared = request["tied"] and share_embedding(graph.graph)
        write_attention(graph.graph, attentions, positions)
        save_graph(graph, directory / "model.onnx", progress)

    try:
        made["builder"] = build_graph(request, load, write, progress)
    except Unsupported as refused:
        name = architecture_of(read_json_object(model_dir / "config.json"))
        raise Unsupported(f"{name}: {refused.message}") from refused
    gc.collect()  # the builder's models refer to themselves
    give_back()
    reference = Path(request["reference"])
    reference.parent.mkdir(parents=True, exist_ok=True)
    far = Path(request["far"])
    keep_reference(model_dir, request["tokens"], reference, progress, far if matrices is None else None)
    if matrices is not None:
        keep_carried(model_dir, request["tokens"], matrices, shared, Path(request["carried"]), far, progress)
    return {"made": made}


def quantize(
    model_dir: Path, request: Mapping[str, Any], progress: Progress
) -> tuple[Matrices, dict[str, Any]]:
    """All linear layers; which tokens they were made from, if from any, and which of them have 8 bits."""
    import torch

    from compress.quantize.blocks import layers_in_blocks, linear_layers
    from compress.quantize.calibration import calibration_windows, seen
    from compress.quantize.kept_scales import kept_scales
    from compress.quantize.kv_scales import write_scales
    from compress.quantize.mapped import mapped_causal_lm
    from compress.quantize.matrices import Matrices
    from compress.quantize.sensitivity import hurt_most, stacked, weights_in_int4
    from compress.recipe import Calibration

    progress("loading the model", None)
    model = mapped_causal_lm(model_dir)
    head = name_of_head(model)
    bits = dict.fromkeys(linear_layers(model).values(), BITS[request["precision"]])
    if request["precision"] == "int4":
        bits[head] = request["head_bits"]

    def shown(label: str) -> Callable[[int, int], None]:
        progress(label, 0.0)
        return lambda done, total: progress(label, done / total)

    scratch, kept = Path(request["scratch"]), dict[str, Any]()
    if former := request["scales_of"]:
        layers = {name: module.out_features for module, name in linear_layers(model).items()}
        kept["scales"], bits = kept_scales(Path(former), layers)
        scratch /= hashlib.sha256(former.encode()).hexdigest()[:12]
    calibrated, quantizer = request["method"]["calibrated"], import_module(request["method"]["module"])
    wide = request["high_precision_fraction"] and not kept
    if not (calibrated or wide or request["kv_cache"] == "int8"):
        matrices = Matrices(scratch / "rounded")
        quantizer.quantize_model(model, None, matrices, shown("rounding"), bits=bits, **kept)
        return matrices, {}
    chosen = Calibration.model_validate(request["calibration"])
    windows = calibration_windows(chosen, model_dir / "tokenizer.json")
    ids, made = torch.from_numpy(windows), {"calibration_seen": seen(windows)}
    matrices = Matrices(scratch / made["calibration_seen"]["sha256"][:12])
    if request["kv_cache"] == "int8":
        write_scales(scales_file(request), model, ids, shown("measuring keys and values"))
    if wide:
        groups = stacked([name for name in layers_in_blocks(model).values() if name != head])
        found = matrices.folder / "wide.json"
        if not found.exists():
            label = shown("measuring each layer")
            wide = hurt_most(model, ids, groups, weights_in_int4, request["high_precision_fraction"], label)
            write_file(found, json.dumps(wide).encode())
        made["wide"] = json.loads(found.read_bytes())
        bits |= {name: 8 for group in made["wide"] for name in groups[group]}
    label = "quantizing" if calibrated else "rounding"
    quantizer.quantize_model(model, ids if calibrated else None, matrices, shown(label), bits=bits, **kept)
    return matrices, made


def scales_file(request: Mapping[str, Any]) -> Path:
    return Path(request["scratch"]) / "kv_scales.json"


def name_of_head(model: Any) -> str:
    head = model.get_output_embeddings()
    return next(name for name, module in model.named_modules() if module is head)


def stand_in(model_dir: Path, matrices: Matrices | None) -> Any:
    """The model as the builder is to see it: of the matrices that it would stack, and we have, the shapes alone."""
    import torch

    from compress.quantize.mapped import mapped_causal_lm
    from compress.quantize.sensitivity import STACKS

    model = mapped_causal_lm(model_dir)
    stacked = {part for parts in STACKS.values() for part in parts}
    for name, module in model.named_modules():
        if matrices is not None and name.rpartition(".")[2] in stacked and name in matrices:
            shape = torch.empty_like(module.weight, device="meta")
            module.weight = torch.nn.Parameter(shape, requires_grad=False)
    return model


def build_graph(
    request: Mapping[str, Any], load: Callable[[], Any], write: Callable[[Any], None], progress: Progress
) -> str:
    """Runs the builder on the model that ``load`` gives; ``write`` gets the graph. Returns its name and version."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    progress("loading the builder", None)
    import onnxruntime_genai
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    from compress.targets.attention_graph import told_plainly

    where = (
        "",
        request["model_dir"],
        request["directory"],
        request["precision"],
        "cpu",
        request["cache_dir"],
    )
    progress(f"building the {request['precision']} graph", None)
    try:
        said = list(request["options"])
        if request["kv_cache"] == "int8":
            said += ["kv_cache_quant_scheme=int8_per_channel", f"kv_cache_scale_file={scales_file(request)}"]
        options = parse_extra_options(*where, said)
        told_plainly(options["hf_details"]["hf_config"])
        with builder_between(load, write):
            create_model(*where, **options)
    except (NotImplementedError, ValueError, KeyError, AttributeError) as error:
        raise Unsupported(f"onnxruntime-genai's builder does not take this model: {error}") from error
    return f"onnxruntime-genai {onnxruntime_genai.__version__}"


@contextmanager
def builder_between(load: Callable[[], Any], write: Callable[[Any], None]) -> Iterator[None]:
    """Within, the builder's models get their weights from ``load`` and give their graph to ``write``.

    Its own two steps hold all weights in float32, twice.
    """
    from onnxruntime_genai.models import builder

    Model = next(one for one in builder.LlamaModel.__mro__ if one.__name__ == "Model")
    kept = Model.load_weights, Model.save_model

    def save_model(self: Any, _directory: str) -> None:
        Model.stamp_build_metadata(self.model)
        write(self.model)

    Model.load_weights, Model.save_model = lambda *_: load(), save_model
    try:
        yield
    finally:
        Model.load_weights, Model.save_model = kept


if __name__ == "__main__":
    answer(build_onnx_decoder)

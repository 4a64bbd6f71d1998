"""A decoder in compressed-tensors for vLLM, by llmcompressor. Run as a child process.

``w8a8``: INT8 weights with a scale per output channel; activations are rounded token by token as they come, so that
nothing about them is fixed by the calibration set. Their outliers are divided out beforehand, where the layers are
those of Llama; elsewhere the weights are rounded by GPTQ. The layers that this hurts most stay bfloat16, as the output
layer and the embedding do. ``w4a16``: INT4 weights with a scale per group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compress.measure.parent_divergence import held_windows, measure
from compress.measure.parity import SAME_GRAPH, carried_logits, mean_divergence, refuse_another
from compress.quantize import gptq, rtn
from compress.quantize.blocks import linear_layers, refuse_odd_widths
from compress.quantize.calibration import calibration_windows, seen
from compress.quantize.sensitivity import all_in_int8, hurt_most, stacked
from compress.recipe import Calibration
from compress.targets.architectures import architecture_of
from everlearn.errors import Unsupported
from everlearn.processes.child import answer
from everlearn.progress import Progress
from train.evaluate.logits import torch_logits
from train.models.load import load_causal_lm

BATCH = 4
SMOOTHED = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers have the parts of :data:`SMOOTHINGS`, with nothing between them that is not linear."""
SMOOTHINGS = [
    [["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"],
    [["re:.*gate_proj", "re:.*up_proj"], "re:.*post_attention_layernorm"],
    [["re:.*down_proj"], "re:.*up_proj"],
]
"""Which layers' inputs are made even, and what is divided for it. Most of the loss came from the last one's."""
SMOOTHING_STRENGTH = 0.8
INT8_ENOUGH = 0.0035
"""Nats per token that the layers may cost together, each measured alone: then the whole comes as near as ``int8-onnx``."""
PARTS = (".weight_packed", ".weight_scale", ".weight_shape")
"""What compressed-tensors has for a matrix besides or instead of its ``weight``."""
INSTALL = "{} is made by llmcompressor, which is not installed here: pip install 'everlearn[compress]'"


def build_vllm_checkpoint(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Quantizes ``model_dir`` into ``directory``: how it was ``made``, and how it ``compared`` with its parent.

    Raises Unsupported where llmcompressor is not installed.
    """
    if find_spec("llmcompressor") is None:
        raise Unsupported(INSTALL.format(request["to"]))
    model_dir, directory = Path(request["model_dir"]), Path(request["directory"])
    progress("loading llmcompressor", None)
    import llmcompressor
    import torch

    windows = calibration_windows(
        Calibration.model_validate(request["calibration"]), model_dir / "tokenizer.json"
    )
    model = load_causal_lm(model_dir)
    ids = torch.from_numpy(windows)
    layers = {module: name for module, name in linear_layers(model).items() if name != "lm_head"}
    if not layers:
        raise Unsupported(f"{type(model).__name__} has no linear layer that llmcompressor rounds")
    made: dict[str, Any] = {"scheme": request["to"].upper(), "calibration_seen": seen(windows)}
    kept = ["lm_head"]
    if request["to"] == "w4a16":
        refuse_odd_widths(layers, request["group_size"], "a smaller group_size divides it")
    elif model.config.model_type in SMOOTHED:
        progress("dividing outliers out", None)
        one_shot(model, ids, [smoothing()])
    if request["high_precision_fraction"]:
        groups = stacked(list(layers.values()))
        made["wide"] = hurt_most(
            model, ids, groups, all_in_int8, request["high_precision_fraction"],
            lambda done, total: progress("measuring each layer", done / total), INT8_ENOUGH,
        )  # fmt: skip
        kept += [name for group in made["wide"] for name in groups[group]]
    progress("quantizing", None)
    one_shot(model, ids, modifiers(request, model.config.model_type, kept))
    for module in model.modules():
        if not hasattr(module, "quantization_scheme"):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    progress("writing", None)
    model.save_pretrained(directory, save_compressed=True)
    del model
    held = held_windows(model_dir, request["tokens"])
    progress("comparing with torch", None)
    refuse_other_weights(model_dir, directory, held[:1])
    return {
        "made": made | {"builder": f"llmcompressor {llmcompressor.__version__}"},
        "compared": measure(model_dir, held, torch_logits(load_causal_lm(directory), held), progress),
    }


def refuse_other_weights(model_dir: Path, directory: Path, windows: Any) -> None:
    """Raises Drifted where ``directory`` predicts otherwise than the parent's code does with the weights that lie there.

    What is rounded as it comes, token by token, is no part of that: it is left out here, and measured with the rest.
    """
    model = load_causal_lm(directory)
    for module in model.modules():
        if scheme := getattr(module, "quantization_scheme", None):
            scheme.input_activations = None
    carried = carried_logits(model_dir, dense_weights(directory), windows)
    divergence = mean_divergence(carried, torch_logits(model, windows), windows)
    what = f"{architecture_of(model.config.to_dict())}: the checkpoint"
    refuse_another(divergence, SAME_GRAPH, what, "vLLM serves its float weights as they are.")


def dense_weights(directory: Path) -> dict[str, Any]:
    """What compressed-tensors' weights stand for, by the parent's names. Codes are int8 (outputs, inputs) or, packed,
    int32 (outputs, inputs / 8); scales (outputs, groups), and both signs are alike. GPT-NeoX's output layer is stored by
    the name that it had in transformers 4."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from safetensors.torch import load_file

    stored: dict[str, Any] = {}
    for file in sorted(directory.glob("model*.safetensors")):
        stored |= load_file(file)
    dense = {name: one for name, one in stored.items() if not name.endswith(PARTS)}
    for name in [one for one in stored if one.endswith(".weight_scale")]:
        layer, scale = name.removesuffix("_scale"), stored[name].float()
        packed = stored.get(f"{layer}_packed")
        codes = stored[layer] if packed is None else unpack_from_int32(packed, 4, stored[f"{layer}_shape"])
        dense[layer] = codes.float() * scale.repeat_interleave(codes.shape[1] // scale.shape[1], dim=1)
    return {re.sub("^embed_out[.]", "lm_head.", name): one for name, one in dense.items()}


def one_shot(model: Any, ids: Any, recipe: list[Any]) -> None:
    """Runs llmcompressor's ``recipe`` over ``model``, layer after layer. ids: int64 (windows, seq)."""
    import llmcompressor
    import torch
    from compressed_tensors.offload import remove_dispatch
    from torch.utils.data import DataLoader

    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids]
    loader = DataLoader(rows, batch_size=BATCH)  # type: ignore[arg-type]
    llmcompressor.oneshot(model=model, dataset=loader, recipe=recipe, pipeline="sequential")
    # It leaves a store of its own in place of each module's parameters, where setting one writes over its numbers.
    remove_dispatch(model)


def smoothing() -> Any:
    """llmcompressor's SmoothQuant (arXiv 2211.10438) of Llama's layers."""
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    return SmoothQuantModifier(smoothing_strength=SMOOTHING_STRENGTH, mappings=SMOOTHINGS)


def modifiers(request: Mapping[str, Any], model_type: str, kept: list[str]) -> list[Any]:
    """llmcompressor's recipe for a target, the way its weights are rounded, and the group size; ``kept`` stay."""
    from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme

    scheme: QuantizationScheme = preset_name_to_scheme(request["to"], ["Linear"])
    assert scheme.weights
    how = {"config_groups": {"group_0": scheme}, "ignore": kept}
    if request["to"] == "w8a8":
        return (rtn if model_type in SMOOTHED else gptq).modifiers(how)
    scheme.weights.group_size = request["group_size"]
    return import_module(request["method"]["module"]).modifiers(how)


if __name__ == "__main__":
    answer(build_vllm_checkpoint)

"""A GGUF file for llama.cpp of a Hugging Face directory; ``everlearn import`` reads it back. Run as a child process.

What its keys and tensors mean is :mod:`everlearn.importing.gguf_architectures`; the keys are those that llama.cpp's own converter sets.
"""

# pyright: basic
# gguf and torch tell strict rules too little of their types.

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.measure.parent_divergence import held_windows, measure
from compress.measure.parity import SAME_GRAPH, Drifted, carried_logits, mean_divergence, refuse_another
from compress.targets.architectures import architecture_of
from compress.targets.gguf_vocabulary import vocabulary_of
from compress.targets.table import GGUF_TYPES
from everlearn.bundles.contents import read_json_object
from everlearn.errors import Unsupported
from everlearn.importing.gguf_architectures import BY_ARCHITECTURE, Family, write_config, write_tensor
from everlearn.importing.gguf_reader import SAMPLING, convert, tensor_names
from everlearn.processes.child import answer
from everlearn.progress import Progress
from train.evaluate.held_out_text import held_out_text
from train.evaluate.logits import torch_logits
from train.models.load import load_causal_lm

Encode = Callable[[str, Any], tuple[Any, Any]]
"""A tensor's name there and its float32 values → the bytes (rows, row bytes), and their gguf type."""

FILE_TYPES: Mapping[str, str] = {
    "F32": "ALL_F32", "Q4_K": "MOSTLY_Q4_K_M", "Q5_K": "MOSTLY_Q5_K_M", "Q3_K": "MOSTLY_Q3_K_M",
}  # fmt: skip
"""``general.file_type`` of a file most of whose matrices are of a type, where it is no ``MOSTLY_`` and the type."""
ODD_TEXTS = (
    "  two  spaces\t\ttabs\n\n\nlines 12345 3.14",
    "d\u00e9j\u00e0 \u4f60\u597d \u0e44\u0e17\u0e22 \U0001f600 it's I'LL <b>x</b>",
    " a",
    "a ",
)


def build_gguf_file(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Writes ``file`` from ``model_dir`` with ``type`` (f32, f16, q8_0 or q4_0), once it is read back and is the same.

    Raises Unsupported before any work where llama.cpp would compute another model, Drifted where the file is another.
    """
    model_dir, file, again = (Path(request[name]) for name in ("model_dir", "file", "scratch"))
    partial = file.with_name(f".{file.name}.partial")
    try:
        write_gguf(model_dir, partial, plain(request["type"]), progress)
        convert({"file": str(partial), "directory": str(again)}, progress)
        compared = compare_back(model_dir, again, request["tokens"], progress)
        limit = GGUF_TYPES[request["type"]]
        if not compared["divergence"] <= limit:
            raise Drifted(
                f"the {request['type']} file is {compared['divergence']:.4f} nats per token away from its parent; at most "
                f"{limit} is accepted. Nothing was written: try more bits"
            )
        partial.replace(file)
        return {"compared": compared}
    finally:
        partial.unlink(missing_ok=True)


def compare_back(model_dir: Path, again: Path, tokens: int, progress: Progress) -> dict[str, Any]:
    """The figures of a file that was read back into ``again``. Raises Drifted where it is another model than the parent."""
    from tokenizers import Tokenizer

    ours, theirs = (Tokenizer.from_file(str(one / "tokenizer.json")) for one in (model_dir, again))
    for text in (held_out_text().text[:20_000], *ODD_TEXTS):
        if ours.encode(text).ids != theirs.encode(text).ids:
            raise Drifted(
                f"the file splits {text[:40]!r} into other tokens than its parent. Nothing was written"
            )
    held = held_windows(model_dir, tokens)
    model = load_causal_lm(again)
    carried = carried_logits(model_dir, model.state_dict(), held[:1])
    divergence = mean_divergence(carried, torch_logits(model, held[:1]), held[:1])
    what = f"{architecture_of(model.config.to_dict())}: the GGUF file"
    refuse_another(divergence, SAME_GRAPH, what, "Bring the model to vLLM as it is.")
    return measure(model_dir, held, torch_logits(model, held), progress)


def plain(kind: str) -> Encode:
    """Every matrix in one type; vectors, and matrices that do not divide into its blocks, as float32 or float16."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quantize

    wanted = GGMLQuantizationType[kind.upper()]
    block = GGML_QUANT_SIZES[wanted][0]

    def encode(name: str, values: Any) -> tuple[Any, Any]:
        fits = values.ndim > 1 and values.shape[-1] % block == 0
        chosen = wanted if fits else GGMLQuantizationType.F16 if values.ndim > 1 else GGMLQuantizationType.F32
        if name in ("token_embd.weight", "output.weight") and wanted.name == "Q4_0" and fits:
            chosen = GGMLQuantizationType.Q8_0  # as llama.cpp, which gives the output layer more
        return quantize(values, chosen), chosen

    return encode


def write_gguf(model_dir: Path, file: Path, encode: Encode, progress: Progress) -> None:
    """Writes ``file`` whole or not at all.

    Raises Unsupported for an architecture, a configuration or a tokenizer that llama.cpp has not, before any work.
    """
    import gguf
    import numpy as np
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_dir).to_dict()
    family = family_named(config)
    fields, extra = write_config(family, config)
    vocabulary = vocabulary_of(model_dir, config["vocab_size"])
    progress("loading the model", None)
    model = load_causal_lm(model_dir)
    partial = file.with_name(f".{file.name}.writing")
    writer = gguf.GGUFWriter(str(partial), family.name)
    try:
        state = model.state_dict()
        if config.get("tie_word_embeddings"):
            state.pop("lm_head.weight", None)
        names = {
            ours: theirs for theirs, ours in tensor_names(family, state, config["num_hidden_layers"]).items()
        }
        kinds: Counter[str] = Counter()
        for done, (ours, tensor) in enumerate(state.items(), start=1):
            name = names.get(ours)
            if name is None:
                raise Unsupported(f"GGUF has no name for {ours}")
            values = write_tensor(family, name, tensor.float().numpy(), config)
            data, kind = encode(name, np.ascontiguousarray(values, dtype=np.float32))
            writer.add_tensor(name, data, raw_dtype=kind)
            if values.ndim > 1:
                kinds[kind.name] += values.size
            progress("encoding", done / len(state))
        for name, values in extra.items():
            writer.add_tensor(name, values)
        write_general(writer, model_dir, model.num_parameters(), kinds.most_common(1)[0][0])
        for key, value in fields.items():
            add(writer, key, value)
        vocabulary.write(writer, model_dir)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def family_named(config: Mapping[str, Any]) -> Family:
    """Raises Unsupported for an architecture that is not written."""
    name = (config.get("architectures") or [""])[0]
    if name not in BY_ARCHITECTURE:
        known = ", ".join(BY_ARCHITECTURE)
        raise Unsupported(f"{name or config.get('model_type')} is not written as GGUF; {known} are")
    return BY_ARCHITECTURE[name]


def write_general(writer: Any, model_dir: Path, parameters: int, kind: str) -> None:
    """What llama.cpp's converter says of every model, and the defaults for sampling."""
    import gguf

    bundle = model_dir / "bundle.json"
    said = read_json_object(bundle) if bundle.is_file() else {}
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(str(said.get("name") or model_dir.name))
    writer.add_size_label(gguf.size_label(parameters, 0, 0, 0))
    if licence := said.get("recipe", {}).get("import", {}).get("licence"):
        writer.add_license(str(licence).lower())
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES.get(kind, f"MOSTLY_{kind}")])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    defaults = model_dir / "generation_config.json"
    values = read_json_object(defaults) if defaults.is_file() else {}
    for theirs, ours in SAMPLING.items():
        if isinstance(value := values.get(ours), int | float) and values.get("do_sample", True):
            add(
                writer,
                f"general.sampling.{theirs}",
                max(0, int(value)) if theirs == "top_k" else float(value),
            )


def add(writer: Any, key: str, value: bool | float | str) -> None:
    """A key with the type that llama.cpp reads it in."""
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds[type(value)](key, value)


if __name__ == "__main__":
    answer(build_gguf_file)

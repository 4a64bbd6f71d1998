"""A GGUF file as a Hugging Face directory. Run as a child process, through ``everlearn.child``.

Which tensor is which, and how llama.cpp had reordered it, is transformers' knowledge; the tensors pass through
one at a time, so that memory holds one copy of the weights in the type they are written in.
"""

# pyright: basic
# gguf, torch and transformers tell strict rules too little of their types.

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from everlearn.child import answer
from everlearn.errors import EverlearnError, InvalidInput, Unsupported
from everlearn.gguf_header import check_gguf
from everlearn.gguf_tokenizer import build_tokenizer, can_build, special_tokens, write_tokenizer_config
from everlearn.progress import Progress

# What damaged bytes make the reader raise; all of it means the same to the person who has the file.
DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, EOFError, AttributeError)


def convert(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Fills ``request["directory"]`` from ``request["file"]``; returns architecture and stored type.

    Raises InvalidInput for a damaged file, Unsupported for an architecture transformers does not read.
    """
    file, directory = Path(request["file"]), Path(request["directory"])
    progress(f"reading {file.name}", None)
    do_once()
    reader, fields = read_gguf(file)
    config, parsed = model_config(file, fields)
    dtype = stored_dtype(reader)
    write_weights(reader, fields, config, dtype, parsed, directory, progress)
    config.dtype = dtype
    config.save_pretrained(directory)
    ids = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    known = {key: value for key, value in ids.items() if value is not None}
    (directory / "generation_config.json").write_text(json.dumps(known, indent=2))
    progress("writing the tokenizer", None)
    write_tokenizer(file, fields, directory, config.max_position_embeddings)
    return {"architecture": config.architectures[0], "dtype": dtype}


def do_once() -> None:
    """transformers reads the file again, and makes the table of names anew for each of a model's modules.

    Both take seconds, so this process keeps the first answer.
    """
    import gguf

    gguf.GGUFReader = cache(gguf.GGUFReader)
    gguf.get_tensor_name_map = cache(gguf.get_tensor_name_map)


def read_gguf(file: Path) -> tuple[Any, dict[str, Any]]:
    """The reader, whose tensors are views of the mapped file, and the metadata as plain values."""
    from gguf import GGUFReader

    header = check_gguf(file)
    for key, value in header.integers.items():
        if key.endswith(".block_count") and value > len(header.shapes):
            raise InvalidInput(f"{file.name} is damaged: {key} is {value}, with {len(header.shapes)} tensors")
    try:
        reader = GGUFReader(str(file))
        return reader, {name: field.contents() for name, field in reader.fields.items()}
    except DAMAGE as error:
        raise InvalidInput(f"{file.name} is damaged or cut short: {error}") from None


def model_config(file: Path, fields: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """transformers' configuration of the model, and everything it parsed on the way."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    try:
        parsed: dict[str, Any] = load_gguf_checkpoint(str(file))
        parsed["config"].pop("_model_name_or_path", None)
        config = CONFIG_MAPPING[parsed["config"]["model_type"]].from_dict(parsed["config"])
        model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        config.architectures = [model_class.__name__]
    except DAMAGE as error:
        architecture = fields.get("general.architecture")
        raise Unsupported(f"{file.name} holds a {architecture!r} model, which is not read: {error}") from None
    return config, parsed


def stored_dtype(reader: Any) -> str:
    """float16 for quantised files: their scales are float16, and a value is one scale times a small integer.

    Measured on SmolLM2-135M (Q4_1): perplexity 38.358 beside float32's 38.356, in half the bytes.
    """
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    if kinds <= {"F32"}:
        return "float32"
    return "bfloat16" if kinds <= {"F32", "BF16"} else "float16"


def write_weights(
    reader: Any,
    fields: Mapping[str, Any],
    config: Any,
    dtype: str,
    parsed: dict[str, Any],
    directory: Path,
    progress: Progress,
) -> None:
    """model.safetensors. Raises InvalidInput naming the tensor that is missing, misshapen or not finite."""
    import numpy as np
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.tie_word_embeddings else set()
    processor = TENSOR_PROCESSORS.get(fields["general.architecture"], TensorProcessor)(parsed["config"])
    names = get_gguf_hf_weights_map(model, processor)
    tensors: dict[str, torch.Tensor] = parsed.setdefault("tensors", {})
    for done, tensor in enumerate(reader.tensors, start=1):
        values = dequantize(tensor.data, tensor.tensor_type)
        processed = processor.process(values, tensor.name, tensor_key_mapping=names, parsed_parameters=parsed)
        if name := names.get(processed.name):
            weight = torch.tensor(np.ascontiguousarray(processed.weights), dtype=getattr(torch, dtype))
            if tuple(weight.shape) != expected[name]:
                raise InvalidInput(f"{tensor.name} has shape {tuple(weight.shape)}, not {expected[name]}")
            if not torch.isfinite(weight).all():
                raise InvalidInput(f"{tensor.name} holds values that are not finite: the file is damaged")
            tensors[name] = weight
        progress("converting weights", done / len(reader.tensors))
    missing = sorted(expected.keys() - tensors.keys() - tied)
    if missing:
        raise InvalidInput(f"the file has no tensor for {missing[0]} ({len(missing)} are missing)")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def write_tokenizer(file: Path, fields: Mapping[str, Any], directory: Path, max_length: int) -> None:
    """tokenizer.json and its configuration."""
    if can_build(fields):
        build_tokenizer(fields).save(str(directory / "tokenizer.json"), pretty=False)
        write_tokenizer_config(directory, fields, max_length)
        return
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except DAMAGE as error:
        raise Unsupported(f"{file.name} has a tokenizer that is not read: {error}") from None
    for name, token in special_tokens(fields).items():
        setattr(tokenizer, name, token)
    tokenizer.chat_template = fields.get("tokenizer.chat_template")
    tokenizer.save_pretrained(directory)


def work(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Whatever libraries raise at numbers that cannot be is the file's fault; what the disk does is not."""
    try:
        return convert(request, progress)
    except (EverlearnError, MemoryError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 (any library's own)
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[-1].strip()[:300]
        name = Path(request["file"]).name
        raise InvalidInput(f"{name} describes a model that cannot be built: {reason}") from None


if __name__ == "__main__":
    answer(work)

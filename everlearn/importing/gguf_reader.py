"""Read a GGUF file into a Hugging Face directory. Run as a child process, through ``everlearn.processes.child``.

What its keys and tensors mean is :mod:`everlearn.importing.gguf_architectures`;
the tensors pass through one at a time, so that memory
holds one copy of the weights in the type they are written in.
"""

# pyright: basic
# gguf, torch and transformers tell strict rules too little of their types.

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from everlearn.errors import EverlearnError, InvalidInput, Unsupported
from everlearn.importing.gguf_architectures import Family, family_of, read_config, read_tensor
from everlearn.importing.gguf_rope import TENSORS
from everlearn.importing.gguf_tokenizer import build_tokenizer, refuse_tokenizer, write_tokenizer_config
from everlearn.importing.gguf_validation import check_gguf
from everlearn.processes.child import answer
from everlearn.progress import Progress

SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""Names of defaults for sampling there, and in generation_config.json."""
# What damaged bytes make the reader raise; all of it means the same to the person who has the file.
DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, EOFError, AttributeError)


def convert(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Fills ``request["directory"]`` from ``request["file"]``; returns architecture and stored type.

    Raises InvalidInput for a damaged file, Unsupported for what is not known to be read right.
    """
    file, directory = Path(request["file"]), Path(request["directory"])
    progress(f"reading {file.name}", None)
    reader, fields = read_gguf(file)
    family = family_of(fields)
    refuse_tokenizer(fields)
    config = read_config(family, fields, small_tensors(reader))
    ids = token_ids(fields)
    config |= ids | {"eos_token_id": fields.get("tokenizer.ggml.eos_token_id")}
    dtype = stored_dtype(reader)
    try:
        write_weights(reader, family, config, dtype, directory, progress)
    except TooLarge:
        dtype = "float32"
        write_weights(reader, family, config, dtype, directory, progress)
    (directory / "config.json").write_text(json.dumps(config | {"dtype": dtype}, indent=2))
    defaults = {**ids, **sampling(fields)}
    (directory / "generation_config.json").write_text(json.dumps(defaults, indent=2))
    progress("writing the tokenizer", None)
    build_tokenizer(fields).save(str(directory / "tokenizer.json"), pretty=False)
    write_tokenizer_config(directory, fields, config["max_position_embeddings"])
    return {"architecture": family.architecture, "dtype": dtype}


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


def small_tensors(reader: Any) -> dict[str, Any]:
    """Every tensor's name, with the float32 values of those that belong to the configuration and None of the others."""
    from gguf import dequantize

    return {
        tensor.name: dequantize(tensor.data, tensor.tensor_type) if tensor.name in TENSORS else None
        for tensor in reader.tensors
    }


def token_ids(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What starts, ends and fills a text, in the words of generation_config.json; all that end it."""
    found = {
        f"{short}_token_id": fields.get(f"tokenizer.ggml.{long}_token_id")
        for short, long in (("bos", "bos"), ("pad", "padding"))
    }
    ends = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(one for one in ends if one is not None))
    found["eos_token_id"] = ends if len(ends) > 1 else next(iter(ends), None)
    return {key: value for key, value in found.items() if value is not None}


def sampling(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults for requests that say nothing, in the words of generation_config.json."""
    return {
        ours: fields[f"general.sampling.{theirs}"]
        for theirs, ours in SAMPLING.items()
        if f"general.sampling.{theirs}" in fields
    }


def stored_dtype(reader: Any) -> str:
    """float16 for quantised files: their scales are float16, and a value is one scale times a small integer.

    Measured on SmolLM2-135M (Q4_1): perplexity 38.358 beside float32's 38.356, in half the bytes.
    """
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    if kinds <= {"F32"}:
        return "float32"
    return "bfloat16" if kinds <= {"F32", "BF16"} else "float16"


class TooLarge(Exception):
    """A value that float16 does not hold."""


def write_weights(
    reader: Any, family: Family, config: Mapping[str, Any], dtype: str, directory: Path, progress: Progress
) -> None:
    """model.safetensors. Raises InvalidInput naming the tensor that is missing, misshapen or not finite; TooLarge."""
    import numpy as np
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    known = {key: value for key, value in config.items() if key not in ("model_type", "architectures")}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **known))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    tied = {"lm_head.weight"} if config["tie_word_embeddings"] else set[str]()
    names = tensor_names(family, expected, config["num_hidden_layers"])
    tensors: dict[str, torch.Tensor] = {}
    for done, tensor in enumerate(reader.tensors, start=1):
        if tensor.name in TENSORS:
            continue
        name = names.get(tensor.name)
        if name is None:
            raise Unsupported(f"{tensor.name} is no tensor of {family.architecture} as it is read here")
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:
            kind = tensor.tensor_type.name
            raise Unsupported(
                f"{tensor.name} is stored as {kind}, which the gguf package does not read"
            ) from None
        values = read_tensor(family, tensor.name, values.astype(np.float32, copy=False), config)
        if values.shape != expected[name]:
            raise InvalidInput(f"{tensor.name} has shape {values.shape}, not {expected[name]}")
        if not np.isfinite(values).all():
            raise InvalidInput(f"{tensor.name} holds values that are not finite: the file is damaged")
        weight = torch.tensor(np.ascontiguousarray(values), dtype=getattr(torch, dtype))
        if not torch.isfinite(weight).all():
            raise TooLarge
        tensors[name] = weight
        progress("converting weights", done / len(reader.tensors))
    missing = sorted(expected.keys() - tensors.keys() - tied)
    if missing:
        raise InvalidInput(f"the file has no tensor for {missing[0]} ({len(missing)} are missing)")
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def tensor_names(family: Family, expected: Iterable[str], layers: int) -> dict[str, str]:
    """Name in a file → name in torch's model."""
    import gguf

    architecture = next(one for one, said in gguf.MODEL_ARCH_NAMES.items() if said == family.name)
    names = gguf.get_tensor_name_map(architecture, layers)
    found = {names.get_name(name, try_suffixes=(".weight", ".bias")): name for name in expected}
    return {theirs: ours for theirs, ours in found.items() if theirs is not None}


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

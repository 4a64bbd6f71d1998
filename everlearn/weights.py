"""What a model's weights must be before it is taken: all there, of the shapes its configuration says, and finite.

Names, types and shapes come from the files' headers; the values pass once, a few megabytes at a time.
"""

# pyright: basic
# numpy tells strict rules too little of its types.

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from everlearn.contents import read_json_object
from everlearn.errors import InvalidInput, Unsupported
from everlearn.progress import Progress
from everlearn.safetensors_header import data_start, read_header

CHUNK_BYTES = 8 * 1024**2
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
EXPONENTS: Mapping[str, tuple[str, int]] = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("<u1", 0x7C),
}
"""The bits of the exponent, by dtype: all of them set is an infinity or no number at all."""
NOT_A_NUMBER_E4M3 = 0x7F
"""``F8_E4M3`` has no infinity, and this one pattern, of either sign, for no number."""

EMBEDDINGS = re.compile(
    r"(^|.*\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|embeddings|lm_head)\.weight"
)
"""Matrices with a row per token."""
LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.(.+)")
PLAIN_DECODERS = frozenset(
    {
        *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3"),
        *("granite", "olmo", "olmo2", "ernie4_5"),
    }
)
"""Model types whose layers are all alike, with the matrices of :func:`matrices`."""

Header = Mapping[str, Mapping[str, Any]]


def check_weights(directory: Path, progress: Progress) -> None:
    """Raises InvalidInput naming the tensor that is missing, misshapen, of a type that is no weight, or not finite.

    Reads every byte of ``model*.safetensors`` once, in :data:`CHUNK_BYTES` of memory.
    """
    headers = {file: read_header(file) for file in sorted(directory.glob("model*.safetensors"))}
    config = read_json_object(directory / "config.json")
    check_index(directory, headers)
    tensors = {name: entry for header in headers.values() for name, entry in header.items()}
    for name, entry in tensors.items():
        if 0 in entry["shape"]:
            raise InvalidInput(f"the tensor {name} is empty: its shape is {entry['shape']}", param=name)
    if not config.get("quantization_config"):
        check_shapes(tensors, config)
    check_finite(headers, progress)


def check_index(directory: Path, headers: Mapping[Path, Header]) -> None:
    """Loaders read ``model.safetensors``, or what the index names. Raises InvalidInput naming what is not there."""
    index = directory / "model.safetensors.index.json"
    if directory / "model.safetensors" in headers:
        return
    if not index.is_file():
        names = ", ".join(file.name for file in headers)
        raise InvalidInput(f"{names}: parts of weights need {index.name} beside them", param=index.name)
    placed: Any = read_json_object(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise InvalidInput(
            f"{index.name} has no weight_map, which tells each tensor's file", param=index.name
        )
    for name, file in placed.items():
        if name not in headers.get(directory / str(file), {}):
            raise InvalidInput(
                f"{index.name} looks for the tensor {name} in {file}, which lacks it", param=name
            )


def check_shapes(tensors: Header, config: Mapping[str, Any]) -> None:
    """Of original weights. Raises InvalidInput naming the tensor, its shape and the one that the config says."""
    vocab = config.get("vocab_size")
    for name, entry in tensors.items():
        shape = entry["shape"]
        rows = EMBEDDINGS.fullmatch(name) and len(shape) == 2
        if rows and type(vocab) is int and shape[0] != vocab:
            raise InvalidInput(
                f"{name} has {shape[0]} rows, and config.json a vocab_size of {vocab}: there is one row per token",
                param="vocab_size",
            )
        if len(shape) > 1 and name.endswith("weight") and entry["dtype"] not in FLOATS:
            raise InvalidInput(
                f"the tensor {name} is stored as {entry['dtype']}, and config.json has no quantization_config: "
                f"original weights are {', '.join(sorted(FLOATS))}",
                param=name,
            )
    if config.get("model_type") in PLAIN_DECODERS:
        check_layers(tensors, config)


def check_layers(tensors: Header, config: Mapping[str, Any]) -> None:
    """Every layer of a plain decoder has the same tensors, with the shapes that config.json says."""
    layers: dict[int, dict[str, list[int]]] = {}
    for name, entry in tensors.items():
        if found := LAYER.fullmatch(name):
            layers.setdefault(int(found[1]), {})[found[2]] = entry["shape"]
    count = config.get("num_hidden_layers")
    if type(count) is not int:
        return
    missing = [at for at in range(count) if at not in layers]
    if missing:
        raise InvalidInput(
            f"layer {missing[0]} has no tensor, and config.json says num_hidden_layers is {count}",
            param="num_hidden_layers",
        )
    if surplus := sorted(layers.keys() - set(range(count))):
        raise InvalidInput(
            f"there are tensors of layer {surplus[0]}, and config.json says num_hidden_layers is {count}: "
            "they would be left out",
            param="num_hidden_layers",
        )
    expected = matrices(config)
    of_all = {part for at in range(count) for part in layers[at]} - {"self_attn.rotary_emb.inv_freq"}
    for at in range(count):
        for part in sorted(of_all - layers[at].keys()):
            raise InvalidInput(
                f"the tensor model.layers.{at}.{part} is missing; other layers have it", param=part
            )
        for part, shape in expected.items():
            if layers[at].get(part, list(shape)) != list(shape):
                raise InvalidInput(
                    f"model.layers.{at}.{part} has the shape {layers[at][part]}; by config.json it is {list(shape)}",
                    param=part,
                )
    if not config.get("tie_word_embeddings", True) and not any("lm_head" in name for name in tensors):
        raise InvalidInput(
            "lm_head.weight is missing, and config.json says tie_word_embeddings is false",
            param="lm_head.weight",
        )


def matrices(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Shape of each matrix of a plain decoder's layer, by name; those only that the configuration determines."""
    hidden, inner, heads = (
        config.get(key) for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    if type(hidden) is not int or type(inner) is not int or type(heads) is not int or not heads:
        return {}
    head = config.get("head_dim")
    if head is None and config["model_type"] in ("llama", "mistral", "qwen2", "phi3", "granite", "smollm3"):
        head = hidden // heads
    groups = config.get("num_key_value_heads")
    shapes = {
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
        "mlp.gate_up_proj.weight": (2 * inner, hidden),
    }
    if type(head) is int:
        shapes |= {
            "self_attn.q_proj.weight": (heads * head, hidden),
            "self_attn.o_proj.weight": (hidden, heads * head),
        }
        if type(groups) is int:
            shapes |= {
                "self_attn.k_proj.weight": (groups * head, hidden),
                "self_attn.v_proj.weight": (groups * head, hidden),
                "self_attn.qkv_proj.weight": ((heads + 2 * groups) * head, hidden),
            }
    return shapes


def check_finite(headers: Mapping[Path, Header], progress: Progress) -> None:
    """Raises InvalidInput naming the first tensor with an infinity or a value that is no number."""
    total = max(1, sum(file.stat().st_size for file in headers))
    done = 0
    for file, header in headers.items():
        ordered = sorted(header.items(), key=lambda one: one[1]["data_offsets"])
        for name, entry in ordered:
            start, stop = entry["data_offsets"]
            bad = count_not_finite(file, data_start(file) + start, stop - start, entry["dtype"])
            if bad:
                raise InvalidInput(
                    f"{bad} of the values of the tensor {name} ({file.name}) are not finite (NaN or infinity): "
                    "a model with them answers nothing; the file is damaged, or its training had diverged",
                    param=name,
                )
            done += stop - start
            progress("looking for values that are no numbers", done / total)


def count_not_finite(file: Path, at: int, size: int, dtype: str) -> int:
    """How many values of ``dtype`` in ``size`` bytes from ``at`` on are infinite or no number; integers are none."""
    try:
        import numpy as np
    except ImportError:
        raise Unsupported("looking into weights needs numpy: pip install 'everlearn[edge]'") from None
    kind, bits = EXPONENTS.get(dtype, ("<u1", NOT_A_NUMBER_E4M3))
    if dtype not in EXPONENTS and dtype != "F8_E4M3":
        return 0
    bad = 0
    for chunk in chunks(file, at, size):
        numbers = np.frombuffer(chunk, dtype=kind)
        mask = numbers.dtype.type(bits)
        bad += int(np.count_nonzero((numbers & mask) == mask))
    return bad


def chunks(file: Path, at: int, size: int) -> Iterator[memoryview]:
    """Bytes ``at`` to ``at + size``, in one buffer that is filled anew."""
    buffer = bytearray(min(CHUNK_BYTES, max(size, 1)))
    with file.open("rb", buffering=0) as stream:
        stream.seek(at)
        while size > 0:
            view = memoryview(buffer)[: min(size, len(buffer))]
            filled = 0
            while filled < len(view):
                got = stream.readinto(view[filled:])
                if not got:
                    raise InvalidInput(f"{file.name} ends too early", param=file.name)
                filled += got
            size -= len(view)
            yield view

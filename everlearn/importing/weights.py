"""Check a model's weights before it is imported: all there, of the configured shapes, and finite.

Names, types and shapes come from the files' headers; the values pass once, a few megabytes at a time.
"""

# pyright: basic
# numpy tells strict rules too little of its types.

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from everlearn.bundles.contents import read_json_object
from everlearn.bundles.safetensors_header import data_start, read_header
from everlearn.bundles.tasks import task_of
from everlearn.errors import InvalidInput, Unsupported
from everlearn.importing.loaded import is_old
from everlearn.importing.plain_decoders import PLAIN_DECODERS, check_plain
from everlearn.processes.child import Limits, run_child
from everlearn.progress import Progress

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
CHECK_BYTES, CHECK_S = 4 * 1024**3, 300
"""What transformers may take to make a model without its values, and to look for its tensors."""

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
        alone = headers.get(directory / "model.safetensors")  # loaders read no other file beside it
        check_shapes(alone or tensors, config)
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
        if name.endswith(("weight", "bias")) and not is_old(name) and entry["dtype"] not in FLOATS:
            raise InvalidInput(
                f"the tensor {name} is stored as {entry['dtype']}, and config.json has no quantization_config: "
                f"original weights are {', '.join(sorted(FLOATS))}",
                param=name,
            )
    if str(config.get("model_type")) in PLAIN_DECODERS:
        check_plain({name: entry["shape"] for name, entry in tensors.items()}, config)


def check_model(directory: Path, progress: Progress) -> None:
    """Has transformers compare the weights with its model of config.json, in a child; where it is installed.

    Plain decoders were compared by :func:`check_weights`, unless their rotary positions are scaled. Raises InvalidInput.
    """
    config = read_json_object(directory / "config.json")
    if config.get("quantization_config") or (
        str(config.get("model_type")) in PLAIN_DECODERS and not has_scaled_positions(config)
    ):
        return
    if not all(find_spec(one) for one in ("torch", "transformers")):
        return
    named = str((config.get("architectures") or [""])[0])
    task = task_of(named or "Model", config, has_modules=(directory / "modules.json").is_file())
    limits = Limits("config.json", CHECK_BYTES, CHECK_S, "config.json")
    run_child(
        "everlearn.importing.model_check", {"directory": str(directory), "task": task}, progress, limits
    )


def has_scaled_positions(config: Mapping[str, Any]) -> bool:
    """Whether anything but plain rotary positions is asked for."""
    rope: Any = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, dict):
        return rope is not None
    return rope.get("rope_type", rope.get("type", "default" if "rope_theta" in rope else None)) != "default"


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

"""llama.cpp's own quantizer, from its PyPI wheel, on our weights, and its choice of a type for each tensor."""

import ctypes
import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from compress.targets.gguf import Encode

INSTEAD = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What llama.cpp takes for a matrix whose width is no multiple of 256 (llama-quant.cpp)."""


def encoder(kind: str, layers: int) -> Encode:
    """Of ``Q4_K_M``, ``Q4_0`` or ``Q8_0``, for a model of so many layers with a tied embedding."""
    chunk = library().ggml_quantize_chunk

    def encode(name: str, values: Any) -> tuple[Any, Any]:
        if values.ndim == 1:
            return values, GGMLQuantizationType.F32
        wanted = type_of(name, kind, layers)
        if values.shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[wanted]][0]:
            wanted = INSTEAD[wanted]
        chosen = GGMLQuantizationType[wanted]
        block, size = GGML_QUANT_SIZES[chosen]
        rows, columns = values.shape
        data = np.empty((rows, columns // block * size), dtype=np.uint8)
        source = np.ascontiguousarray(values, dtype=np.float32)
        written = chunk(int(chosen), source.ctypes.data, data.ctypes.data, 0, rows, columns, None)
        assert written == data.nbytes
        return data, chosen

    return encode


def type_of(name: str, kind: str, layers: int) -> str:
    """llama.cpp's choice for a tensor of a dense Llama (``llama_tensor_get_type``)."""
    if name in ("token_embd.weight", "output.weight"):
        return "Q8_0" if kind == "Q8_0" else "Q6_K"
    if kind != "Q4_K_M":
        return kind
    found = re.match(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", name)
    return "Q6_K" if found and more_bits(int(found[1]), layers) else "Q4_K"


def more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's ``use_more_bits``: the first and the last eighth, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def library() -> ctypes.CDLL:
    """The wheel's shared object, which exports ggml."""
    spec = importlib.util.find_spec("xllamacpp")
    assert spec and spec.submodule_search_locations
    (path,) = Path(next(iter(spec.submodule_search_locations))).glob("xllamacpp*.so")
    found = ctypes.CDLL(str(path))
    found.ggml_quantize_chunk.restype = ctypes.c_size_t
    found.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    ]  # fmt: skip
    return found

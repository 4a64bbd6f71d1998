"""What vLLM cannot run on a CPU, known before it is started."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lacks_kernel(config: Mapping[str, Any], capabilities: Mapping[str, Any]) -> str | None:
    """Why vLLM's build for CPUs fails on a model here; None where it does not.

    config: the model's ``config.json``; capabilities: ``torch.cpu.get_capabilities()``. vLLM 0.29 has its kernel for
    INT4 weights (``cpu_gemm_wna16``) in the libraries for AVX-512 and not in the one for AVX2, and finds out with the
    first token.
    """
    quantization: Mapping[str, Any] = config.get("quantization_config") or {}
    packed = quantization.get("format") == "pack-quantized"
    if packed and capabilities.get("architecture") == "x86_64" and not capabilities.get("avx512_f"):
        return "vLLM multiplies INT4 weights on CPUs with AVX-512 or on GPUs, and this CPU has none: w8a8 and int4-onnx run here"
    return None

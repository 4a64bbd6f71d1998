"""INT4 weights in vLLM on a CPU without AVX-512, and INT8 weights on one without VNNI, as a plugin of vLLM.

vLLM 0.29 multiplies packed weights on CPUs in its libraries for AVX-512 alone, and finds out with the first token. What
it multiplies INT8 with, oneDNN, adds two products in 16 bits where there is no VNNI, and large ones overflow unseen.
Here both are unpacked as they are loaded, and multiplied in the type of the activations: the same numbers, as much
memory and as much time as the weights take in that type.
"""

# pyright: basic
# vLLM and torch tell strict rules little of their types.

from __future__ import annotations

import os
from functools import cache
from typing import Any, cast

import torch

from everlearn.cpu_features import instructions

PACKED_KERNEL = "CPUWNA16LinearKernel"
INT8_KERNEL = "CPUInt8ScaledMMLinearKernel"


def needed() -> bool:
    """Whether vLLM runs on a CPU here, and has no kernel for packed weights on it."""
    from vllm.platforms import current_platform

    able = torch.cpu.get_capabilities()
    return current_platform.is_cpu() and able.get("architecture") == "x86_64" and not able.get("avx512_f")


def saturating() -> bool:
    """Whether vLLM runs on a CPU here whose INT8 products may overflow."""
    from vllm.platforms import current_platform

    return current_platform.is_cpu() and instructions().may_saturate


@cache
def register() -> None:
    """Entry point ``vllm.general_plugins``: vLLM calls it in each of its processes."""
    if needed():
        put_in_place(PACKED_KERNEL, unpacking_kernel(), "mp")
    if saturating():
        put_in_place(INT8_KERNEL, widening_kernel(), "int8")


def put_in_place(theirs: str, ours: type, kind: str) -> None:
    """Lets vLLM choose ``ours`` instead of ``theirs``."""
    from vllm.model_executor.kernels.linear import register_linear_kernel
    from vllm.platforms import PlatformEnum

    disabled = {*filter(None, os.environ.get("VLLM_DISABLED_KERNELS", "").split(",")), theirs}
    os.environ["VLLM_DISABLED_KERNELS"] = ",".join(sorted(disabled))
    register_linear_kernel(ours, PlatformEnum.CPU, kind)


def widening_kernel() -> type:
    """The class of the kernel for INT8 weights; activations are not rounded."""
    from vllm.model_executor.kernels.linear import Int8ScaledMMLinearKernel
    from vllm.model_executor.layers.quantization.utils.w8a8_utils import convert_to_channelwise

    class WidenedLinearKernel(Int8ScaledMMLinearKernel):
        @classmethod
        def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
            return True, None

        @classmethod
        def can_implement(cls, c: Any) -> tuple[bool, str | None]:
            return True, None

        def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
            codes: Any = getattr(layer, self.layer_param_names[0])  # int8 (outputs, inputs)
            scales: Any = getattr(layer, self.layer_param_names[1])
            if not self.config.is_channelwise:
                scales = cast(Any, convert_to_channelwise(scales, cast(Any, layer).logical_widths))
            weights = (codes.data * scales.data.reshape(-1, 1)).to(torch.get_default_dtype())
            for name in self.layer_param_names:
                if getattr(layer, name, None) is not None:
                    delattr(layer, name)
            layer.widened = torch.nn.Parameter(weights, requires_grad=False)

        def apply_weights(
            self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
        ) -> torch.Tensor:
            return torch.nn.functional.linear(x, layer.get_parameter("widened").to(x.dtype), bias)

    return WidenedLinearKernel


def unpacking_kernel() -> type:
    """The kernel's class; made here, since its base is vLLM's."""
    from vllm.model_executor.kernels.linear import MPLinearKernel
    from vllm.scalar_type import scalar_types

    class UnpackedLinearKernel(MPLinearKernel):
        @classmethod
        def get_min_capability(cls) -> int:
            return -1

        @classmethod
        def can_implement(cls, c: Any) -> tuple[bool, str | None]:
            known = (scalar_types.uint4b8, scalar_types.uint4)
            return c.weight_type in known, f"{c.weight_type} is none of {known}"

        def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
            weights = unpacked(self.config, *self._get_weight_params(layer))
            for name in (self.w_q_name, self.w_s_name, self.w_zp_name, self.w_gidx_name):
                if name and hasattr(layer, name):
                    delattr(layer, name)
            layer.unpacked = torch.nn.Parameter(weights, requires_grad=False)

        def apply_weights(
            self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
        ) -> torch.Tensor:
            return torch.nn.functional.linear(x, layer.get_parameter("unpacked"), bias)

    return UnpackedLinearKernel


def unpacked(
    config: Any,
    packed: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    group_of_input: torch.Tensor | None,
) -> torch.Tensor:
    """What compressed-tensors' packed weights stand for: (outputs, inputs), in the type of the activations.

    packed: int32 (outputs, inputs / 8); scales: (outputs, groups); zeros: int32 (outputs / 8, groups).
    """
    from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32

    kind = config.weight_type
    codes = unpack_quantized_values_into_int32(packed.data, kind, 1)
    inputs = codes.shape[1]
    if config.has_g_idx:
        assert group_of_input is not None
        group = group_of_input.data.long()
    else:
        group = torch.arange(inputs) // (config.group_size if config.group_size > 0 else inputs)
    middle = torch.tensor(kind.bias)
    if config.zero_points:
        assert zeros is not None
        middle = unpack_quantized_values_into_int32(zeros.data, kind, 0)[:, group]
    return ((codes - middle) * scales.data[:, group]).to(config.act_type)

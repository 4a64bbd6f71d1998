"""What packed INT4 weights stand for, and where vLLM is given a kernel for them."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from everlearn.cpu_features import Instructions
from serve.engines.vllm.int4 import needed, saturating, unpacked, widening_kernel

if find_spec("vllm") is None or find_spec("compressed_tensors") is None:
    pytest.skip("vLLM or compressed-tensors is not installed here", allow_module_level=True)

OUTPUTS, INPUTS, GROUP = 16, 64, 32


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("group", [GROUP, -1])
def test_weights_are_what_compressed_tensors_packed(zero_points: bool, ordered: bool, group: int) -> None:
    from compressed_tensors.compressors.pack_quantized import pack_to_int32
    from vllm.model_executor.kernels.linear import MPLinearLayerConfig
    from vllm.scalar_type import scalar_types

    draw = torch.Generator().manual_seed(0)
    groups = 1 if group < 0 else INPUTS // group
    codes = torch.randint(-8, 8, (OUTPUTS, INPUTS), generator=draw, dtype=torch.int8)
    middles = torch.randint(-8, 8, (OUTPUTS, groups), generator=draw, dtype=torch.int8)
    scales = torch.rand((OUTPUTS, groups), generator=draw)
    of_input = torch.arange(INPUTS) * groups // INPUTS
    if ordered:
        of_input = of_input[torch.randperm(INPUTS, generator=draw)]
    config = MPLinearLayerConfig(
        full_weight_shape=(INPUTS, OUTPUTS), partition_weight_shape=(INPUTS, OUTPUTS),
        weight_type=scalar_types.uint4 if zero_points else scalar_types.uint4b8,
        act_type=torch.float32, group_size=group, zero_points=zero_points, has_g_idx=ordered,
    )  # fmt: skip
    found = unpacked(
        config,
        pack_to_int32(codes, 4),
        scales,
        pack_to_int32(middles, 4, packed_dim=0) if zero_points else None,
        of_input.int() if ordered else None,
    )
    middle = middles[:, of_input].int() if zero_points else 0
    torch.testing.assert_close(found, (codes.int() - middle) * scales[:, of_input])


def test_the_kernel_is_for_x86_without_avx512_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    here = {"architecture": "x86_64", "avx512_f": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: here)
    assert needed() == current_platform.is_cpu()
    here["avx512_f"] = True
    assert not needed()
    here |= {"architecture": "aarch64", "avx512_f": False}
    assert not needed()


@pytest.mark.parametrize("by_channel", [True, False])
def test_int8_weights_are_multiplied_as_what_they_stand_for(by_channel: bool) -> None:
    from vllm.model_executor.kernels.linear import Int8ScaledMMLinearLayerConfig

    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(-128, 128, (OUTPUTS, INPUTS), generator=draw, dtype=torch.int8)
    scales = torch.rand((OUTPUTS, 1) if by_channel else (1,), generator=draw)
    layer = torch.nn.Module()
    layer.weight, layer.weight_scale = (
        torch.nn.Parameter(one, requires_grad=False) for one in (codes, scales)
    )
    layer.input_scale = layer.input_zero_point = layer.azp_adj = None
    layer.logical_widths = [OUTPUTS]
    config = Int8ScaledMMLinearLayerConfig(
        is_static_input_scheme=False, is_channelwise=by_channel, input_symmetric=True
    )
    names = ("weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj")
    kernel = widening_kernel()(config, names)
    kernel.process_weights_after_loading(layer)
    x, bias = torch.randn((3, INPUTS), generator=draw), torch.randn(OUTPUTS, generator=draw)
    torch.testing.assert_close(
        kernel.apply_weights(layer, x, bias), x @ (codes * scales.reshape(-1, 1)).T + bias
    )
    assert not hasattr(layer, "weight"), "its memory is given back"


def test_the_kernel_for_int8_is_for_x86_without_vnni_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    for machine, names, expected in (
        ("x86_64", ("SSE4.2", "AVX2"), True),
        ("x86_64", ("AVX2", "AVX-512"), True),
        ("x86_64", ("AVX2", "VNNI"), False),
        ("aarch64", ("NEON",), False),
    ):
        found = Instructions(machine, names)
        monkeypatch.setattr("serve.engines.vllm.int4.instructions", lambda found=found: found)
        assert saturating() == (expected and current_platform.is_cpu())

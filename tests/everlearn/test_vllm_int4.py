"""What packed INT4 weights stand for, and where vLLM is given a kernel for them."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from everlearn.vllm_int4 import needed, unpacked

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

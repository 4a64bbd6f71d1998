"""INT4 weights on a CPU that vLLM has no kernel for."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from everlearn.bundle import write_bundle
from everlearn.vllm_kernels import lacks_kernel
from tests.conftest import REPOSITORY

PACKED = {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}
NEEDS_VLLM = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here")


def test_int4_needs_avx512_on_x86_and_nothing_else_does() -> None:
    old, new = ({"architecture": "x86_64", "avx512_f": has} for has in (False, True))
    assert "AVX-512" in (lacks_kernel(PACKED, old) or "")
    assert lacks_kernel(PACKED, new) is None
    assert lacks_kernel(PACKED, {"architecture": "aarch64"}) is None
    int8 = {"quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized"}}
    assert lacks_kernel(int8, old) is None
    assert lacks_kernel({"model_type": "llama"}, old) is None


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    import torch

    if lacks_kernel(PACKED, torch.cpu.get_capabilities()) is None:
        pytest.skip("this CPU has AVX-512")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **PACKED}))
    write_bundle(
        bundle, name="packed", format="compressed-tensors", task="generate", architecture="LlamaForCausalLM",
        parameters=0, parent=None, recipe={}, metrics={},
    )  # fmt: skip
    return bundle


@NEEDS_VLLM
def test_the_engine_says_so_at_once(packed: Path, tmp_path: Path) -> None:
    options = ["--bundle", str(packed), "--model", "packed", "--uds", str(tmp_path / "s")]
    parents, held_open = os.pipe()  # an engine ends with the pipe from its parent
    ended = subprocess.run(
        [sys.executable, "-m", "serve.engines.vllm", *options],
        capture_output=True, text=True, cwd=REPOSITORY, check=False, stdin=parents,
        env={"EVERLEARN_HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    for end in (parents, held_open):
        os.close(end)
    assert ended.returncode == 2, ended.stderr
    assert "w8a8 and int4-onnx run here" in ended.stderr

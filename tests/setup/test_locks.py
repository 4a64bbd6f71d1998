"""The lock files say what pyproject.toml asks for, by hash, and nothing of CUDA where there is no GPU."""

import re

import pytest
from packaging.utils import canonicalize_name

from tests.support.locks import CPU_LOCKS, REQUIREMENTS, is_cuda, locked, pins, wanted

EVERY_LOCK = sorted(path.stem for path in REQUIREMENTS.glob("*.lock"))
HEAVY = {"torch", "transformers", "onnx", "onnxruntime", "onnxruntime-genai", "numpy", "tokenizers"}
EXTRAS = {
    "gateway": ["serve"],
    "serve": ["serve", "export"],
    "demo": ["serve", "export", "continual"],
    "vllm-cpu": ["serve", "export"],
    "all": ["all", "dev"],
    "vllm-cuda": ["serve", "export", "vllm"],
}


@pytest.mark.parametrize("name", EVERY_LOCK)
def test_every_pin_has_a_hash_and_no_address(name: str) -> None:
    assert pins(name)
    for pin in pins(name):
        assert "--hash=sha256:" in pin, pin
    assert not re.search(
        r"://|file:|--(extra-)?index-url|--find-links", (REQUIREMENTS / f"{name}.lock").read_text()
    )


@pytest.mark.parametrize("name", CPU_LOCKS)
def test_a_host_without_a_gpu_gets_no_cuda_package_and_no_torch_from_a_lock(name: str) -> None:
    packages = locked(name)
    assert not [package for package in packages if is_cuda(package)]
    assert not packages.keys() & {"torch", "torchvision", "torchaudio", "torchcodec"}


@pytest.mark.parametrize("name", EXTRAS)
def test_a_lock_satisfies_what_the_project_asks_for(name: str) -> None:
    packages = locked(name)
    for requirement in wanted(*EXTRAS[name]):
        package = canonicalize_name(requirement.name)
        if package == "torch" and name in CPU_LOCKS:
            continue  # installed first and alone
        assert package in packages, f"{name}.lock lacks {requirement}: run make lock"
        assert all(version in requirement.specifier for version in packages[package]), requirement


def test_a_gateway_needs_neither_torch_nor_onnxruntime_nor_numpy() -> None:
    assert not locked("gateway").keys() & HEAVY


@pytest.mark.parametrize("small", [name for name in CPU_LOCKS if name != "all"])
def test_a_small_host_runs_the_versions_that_the_tests_ran_with(small: str) -> None:
    larger = locked("all")
    assert {package: larger.get(package) for package in locked(small)} == locked(small)


def test_versions_known_to_work_together_are_the_locked_ones() -> None:
    everything = locked("all")
    assert everything["vllm-cpu"] == {"0.29.0"}
    assert everything["compressed-tensors"] == {"0.18.0"}
    assert everything["transformers"] == {"5.14.1"}
    assert everything["onnxruntime"] == {"1.32.0"}
    assert locked("vllm-cuda")["torch"] == {"2.13.0"}

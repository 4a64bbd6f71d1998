"""What is really installed where these tests run."""

import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.support.locks import installer, is_cuda, locked

INSTALLED = {canonicalize_name(each.metadata["Name"]): each.version for each in distributions()}


@pytest.mark.skipif(installer().has_gpu(), reason="a GPU host may have CUDA packages")
def test_nothing_of_cuda_is_installed_without_a_gpu() -> None:
    assert not [name for name in INSTALLED if is_cuda(name)]
    assert not INSTALLED.keys() & {"torchvision", "torchaudio", "torchcodec"}

    import torch

    assert torch.version.cuda is None


@pytest.mark.skipif(
    not (Path(sys.prefix) / ".stamp-all").exists(), reason="not an environment that make created"
)
def test_what_make_installed_is_what_is_locked() -> None:
    differing = {
        name: (INSTALLED[name], versions)
        for name, versions in locked("all").items()
        if name in INSTALLED and INSTALLED[name] not in versions
    }
    assert not differing
    assert INSTALLED["torch"].split("+")[0] == installer().TORCH.removeprefix("torch==")

"""The safetensors version of the real model."""

from pathlib import Path

import pytest

from everlearn.registry.registry import Registry, Version
from everlearn.settings import Settings


@pytest.fixture(scope="session")
def tensors(real_settings: Settings) -> Version:
    return next(
        version for version in Registry(real_settings).versions("smollm2") if version.format == "safetensors"
    )


@pytest.fixture(scope="session")
def tensors_bundle(real_settings: Settings, tensors: Version) -> Path:
    return Registry(real_settings).path(tensors)

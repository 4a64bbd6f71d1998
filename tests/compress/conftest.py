"""One home with the tiny models imported, shared by the tests of this folder."""

from pathlib import Path

import pytest

from everlearn.importing.sources import import_model
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.support.tiny_models import write_bert, write_llama


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a home that holds ``tiny`` (a decoder) and ``encoder``."""
    settings = Settings(home=tmp_path_factory.mktemp("tiny") / "home")
    for name, write in (("tiny", write_llama), ("encoder", write_bert)):
        directory: Path = tmp_path_factory.mktemp(name)
        write(directory)
        import_model(settings, str(directory), name=name)
    return settings


@pytest.fixture(scope="session")
def parent(tiny_settings: Settings) -> Path:
    """The directory of ``tiny``, as it was imported."""
    registry = Registry(tiny_settings)
    return registry.path(registry.resolve("tiny@1"))

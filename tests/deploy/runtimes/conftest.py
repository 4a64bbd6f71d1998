"""A home with a tiny decoder and a tiny encoder, and which runtimes are installed on this machine."""

from pathlib import Path

import pytest

from everlearn.importing.sources import import_model
from everlearn.settings import Settings
from tests.support.tiny_models import write_bert, write_llama


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings of a home that holds ``tiny`` (a decoder) and ``encoder``."""
    settings = Settings(home=tmp_path_factory.mktemp("runtimes") / "home")
    for name, write in (("tiny", write_llama), ("encoder", write_bert)):
        directory: Path = tmp_path_factory.mktemp(name)
        write(directory)
        import_model(settings, str(directory), name=name)
    return settings

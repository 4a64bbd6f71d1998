"""A browser, and the page of a real model."""

from pathlib import Path

import pytest

from deploy.edge.web.site import write_site
from everlearn.settings import Settings

BLANK = '<!doctype html><title>blank</title><link rel="icon" href="data:,">'


@pytest.fixture(scope="session")
def smollm2_site(real_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 in INT4 and the page that chats with it."""
    from deploy.edge.build import build

    directory = tmp_path_factory.mktemp("site") / "smollm2"
    build(real_settings, "smollm2", "web", directory)
    (directory / "blank.html").write_text(BLANK)
    return directory


@pytest.fixture(scope="session")
def minilm_site(real_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM in INT8 and the page that searches notes."""
    from deploy.edge.build import build

    directory = tmp_path_factory.mktemp("site") / "minilm"
    build(real_settings, "minilm", "web", directory)
    return directory


@pytest.fixture(scope="session")
def empty_site(real_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chat page without a model."""
    directory = tmp_path_factory.mktemp("empty")
    write_site(directory, "generate", real_settings)
    (directory / "blank.html").write_text(BLANK)
    return directory

from pathlib import Path

import pytest

from tests.support.tiny_encoders import write_wordpiece


@pytest.fixture(scope="session")
def wordpiece(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with BERT's kind of tokenizer."""
    directory = tmp_path_factory.mktemp("wordpiece")
    write_wordpiece(directory)
    return directory

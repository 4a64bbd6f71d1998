"""A .env as docs/compose.md has a user make it."""

import re
import secrets
from pathlib import Path

import pytest

from tests.support.serve.composed import FOLDER


@pytest.fixture(scope="session")
def env_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its empty passwords filled in, and the tests' own model."""
    text = (FOLDER / ".env.example").read_text()
    text = re.sub(
        r"^(\w+_PASSWORD)=$", lambda found: f"{found[1]}={secrets.token_hex(24)}", text, flags=re.MULTILINE
    )
    file = tmp_path_factory.mktemp("env") / ".env"
    file.write_text(re.sub(r"^MODELS=.*$", "MODELS=tiny", text, flags=re.MULTILINE))
    return file

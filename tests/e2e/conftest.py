"""`everlearn serve smollm2 minilm` as a user runs it, once for all tests here, and the stock `openai` client."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import openai
import pytest
from tokenizers import Tokenizer

from everlearn.database import open_database
from everlearn.keys import create_key
from everlearn.registry import Registry
from everlearn.settings import Settings
from tests.serve.supervised import REAL, Supervised, supervised

READY_S = 120.0


def copy_home(real_home: Path, home: Path) -> Settings:
    """A home of its own, with the real home's models in it: the files are shared, the database is a copy."""
    settings = Settings(home=home, store_url=str(real_home / "store"))
    settings.directory("run")
    with (
        closing(sqlite3.connect(real_home / "everlearn.db")) as source,
        closing(sqlite3.connect(home / "everlearn.db")) as copy,
    ):
        source.backup(copy)
    return settings


@pytest.fixture(scope="session")
def settings_of_server(real_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return copy_home(real_home, tmp_path_factory.mktemp("e2e") / "home")


@pytest.fixture(scope="session")
def new_key(settings_of_server: Settings) -> Callable[..., str]:
    """Makes API keys of the running server; returns the secret."""
    db = open_database(settings_of_server)
    return lambda name, **limits: create_key(db, name, **limits)[0]


@pytest.fixture(scope="session")
def key(new_key: Callable[..., str]) -> str:
    return new_key("tests")


@pytest.fixture(scope="session")
def server(settings_of_server: Settings, key: str) -> Iterator[Supervised]:
    settings = settings_of_server
    environment = {"EVERLEARN_STORE_URL": str(settings.store_url)}
    with supervised(settings.home, "smollm2", "minilm", command=REAL, **environment) as running:  # type: ignore[arg-type]
        yield running.ready(READY_S)


@pytest.fixture(scope="session")
def client(server: Supervised, key: str) -> Iterator[openai.OpenAI]:
    """Without retries, so that a test sees what the server said."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="session")
def tokenizer(real_settings: Settings) -> Tokenizer:
    """The tokenizer of the served smollm2, to count with."""
    registry = Registry(real_settings)
    return Tokenizer.from_file(str(registry.path(registry.resolve("smollm2")) / "tokenizer.json"))

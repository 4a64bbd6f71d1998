"""One server as a user runs it, with SmolLM2 on the ONNX engine and on vLLM, and the stock `openai` client."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from tokenizers import Tokenizer

from everlearn.registry.database import open_database
from everlearn.registry.keys import create_key
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.support.serve.supervised import REAL, Supervised, supervised

READY_S = 120.0
VLLM_READY_S = 600.0
VLLM = "smollm2-vllm"
HAS_VLLM = find_spec("vllm") is not None
NEEDS_VLLM = pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed here")
CAPITAL: Any = [{"role": "user", "content": "What is the capital of France?"}]


@dataclass(frozen=True)
class Served:
    """A model on one kind of engine, and a client."""

    client: openai.OpenAI
    model: str

    def chat(self, messages: Any = CAPITAL, **options: Any) -> Any:
        """Greedy and short, unless the test asks for something else."""
        limit = {} if "max_completion_tokens" in options else {"max_tokens": 64}
        return self.client.chat.completions.create(
            model=self.model, messages=messages, **({"temperature": 0} | limit | options)
        )


@pytest.fixture(
    scope="package",
    params=[pytest.param("smollm2", id="onnx"), pytest.param(VLLM, id="vllm", marks=NEEDS_VLLM)],
)
def model(request: pytest.FixtureRequest) -> str:
    """SmolLM2's name on each kind of engine: int4 weights on ONNX Runtime, the original's tensors on vLLM."""
    return request.param


@pytest.fixture
def served(client: openai.OpenAI, model: str) -> Served:
    return Served(client, model)


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


@pytest.fixture(scope="package")
def settings_of_server(real_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return copy_home(real_home, tmp_path_factory.mktemp("e2e") / "home")


@pytest.fixture(scope="package")
def new_key(settings_of_server: Settings) -> Callable[..., str]:
    """Makes API keys of the running server; returns the secret."""
    db = open_database(settings_of_server)
    return lambda name, **limits: create_key(db, name, **limits)[0]


@pytest.fixture(scope="package")
def key(new_key: Callable[..., str]) -> str:
    return new_key("tests")


@pytest.fixture(scope="package")
def server(settings_of_server: Settings, key: str) -> Iterator[Supervised]:
    """It leaves no process behind when it ends."""
    settings = settings_of_server
    engines = {"EVERLEARN_SERVE__VLLM_MODELS": f'["{VLLM}"]'} if HAS_VLLM else {}
    environment = {"EVERLEARN_STORE_URL": str(settings.store_url), **engines}
    models = ["smollm2", "minilm", *([VLLM] if HAS_VLLM else [])]
    with supervised(settings.home, *models, command=REAL, **environment) as running:  # type: ignore[arg-type]
        yield running.ready(VLLM_READY_S if HAS_VLLM else READY_S)
        family = running.family.children(recursive=True)
        assert running.end(within_s=60) == 0
        assert not psutil.wait_procs(family, timeout=20)[1]


@pytest.fixture(scope="package")
def client(server: Supervised, key: str) -> Iterator[openai.OpenAI]:
    """Without retries, so that a test sees what the server said."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="session")
def tokenizer(real_settings: Settings) -> Tokenizer:
    """The tokenizer of the served smollm2, to count with."""
    registry = Registry(real_settings)
    return Tokenizer.from_file(str(registry.path(registry.resolve("smollm2")) / "tokenizer.json"))

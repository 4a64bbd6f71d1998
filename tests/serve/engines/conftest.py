"""The real int4 model, loaded once as a decoder and once as a running engine process."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from serve.engines.onnx.decoding.decoder import Decoder
from serve.engines.onnx.requests import RequestReader


@pytest.fixture(scope="session")
def int4_bundle(real_settings: Settings) -> Path:
    registry = Registry(real_settings)
    return registry.path(registry.resolve("smollm2"))


@pytest.fixture(scope="session")
def minilm_bundle(real_settings: Settings) -> Path:
    registry = Registry(real_settings)
    return registry.path(registry.resolve("minilm"))


@pytest.fixture(scope="session")
def decoder(int4_bundle: Path) -> Decoder:
    return Decoder(int4_bundle, rows=8, threads=2, context=1024)


@pytest.fixture(scope="session")
def reader(int4_bundle: Path, decoder: Decoder) -> RequestReader:
    return RequestReader(int4_bundle, decoder.config, decoder.context)


@pytest.fixture(scope="session")
def random_tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(20, 40000, 600)


def start_engine(bundle: Path, model: str) -> tuple[subprocess.Popen[bytes], httpx.Client]:
    """A running engine process and a client of it; it ends with its standard input."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "serve.engines.onnx", "--bundle", str(bundle), "--model", model]
    process = subprocess.Popen([*command, "--port", str(port)], stdin=subprocess.PIPE)
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)
    for _ in range(300):
        try:
            if client.get("/health").status_code == 200:
                return process, client
        except httpx.TransportError:
            time.sleep(0.2)
    process.kill()
    raise AssertionError("the engine did not become ready in a minute")


@pytest.fixture(scope="session")
def engine(int4_bundle: Path) -> Iterator[httpx.Client]:
    process, client = start_engine(int4_bundle, "smollm2")
    yield client
    assert process.stdin
    process.stdin.close()
    assert process.wait(10) == 0


@pytest.fixture(scope="session")
def embedding_engine(minilm_bundle: Path) -> Iterator[httpx.Client]:
    process, client = start_engine(minilm_bundle, "minilm")
    yield client
    process.kill()
    process.wait()

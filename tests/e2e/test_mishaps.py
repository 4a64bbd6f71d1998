"""Processes killed while a real model answers."""

import signal
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.e2e.conftest import READY_S, copy_home
from tests.support.serve.supervised import REAL, Supervised, eventually, supervised

pytestmark = pytest.mark.slow

LONG: list[Any] = [{"role": "user", "content": "Write a very long story about the sea."}]


def works(client: openai.OpenAI) -> bool:
    try:
        client.chat.completions.create(model="smollm2", messages=LONG, max_tokens=2)
    except openai.APIError:
        return False
    return True


def test_an_engine_killed_mid_stream_ends_that_stream_and_the_next_request_works(
    server: Supervised, client: openai.OpenAI
) -> None:
    stream = client.chat.completions.create(model="smollm2", messages=LONG, max_tokens=500, stream=True)
    received = 0
    with pytest.raises(openai.APIError):
        for chunk in stream:
            received += bool(chunk.choices and chunk.choices[0].delta.content)
            if received == 5:
                server.child("--model smollm2 ").kill()
    assert 5 <= received < 400
    assert eventually(lambda: works(client), within_s=30)


def test_a_killed_engine_leaves_the_other_model_alone(server: Supervised, client: openai.OpenAI) -> None:
    server.child("--model smollm2 ").kill()
    assert client.embeddings.create(model="minilm", input="hello").data
    assert eventually(lambda: works(client), within_s=30)


def test_a_killed_gateway_is_back_within_seconds(server: Supervised, client: openai.OpenAI) -> None:
    server.child("serve.gateway").kill()
    assert eventually(lambda: works(client), within_s=15)


def test_a_killed_supervisor_takes_all_along_and_the_next_serve_works(
    real_home: Path, tmp_path: Path
) -> None:
    settings = copy_home(real_home, tmp_path / "home")
    environment = {"EVERLEARN_STORE_URL": str(settings.store_url)}
    with supervised(settings.home, "smollm2", command=REAL, **environment) as first:  # type: ignore[arg-type]
        children = first.ready(READY_S).family.children(recursive=True)
        assert len(children) == 3  # the engine, the gateway, and what works on batches
        first.end(signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive
    with supervised(settings.home, "smollm2", command=REAL, **environment) as second:  # type: ignore[arg-type]
        second.ready(READY_S)
        answer = second.ask("What is the capital of France?", "smollm2", temperature=0, max_tokens=16)
        assert "Paris" in answer.json()["choices"][0]["message"]["content"]
        assert second.end() == 0

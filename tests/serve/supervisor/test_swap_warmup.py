"""What passes for a sensible first answer. The engine is a real HTTP server that says what a test tells it to."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from everlearn.registry.registry import Version
from everlearn.settings import Settings
from serve.supervisor.warmup import PROMPTS, Unfit, warm_up
from tests.support.serve.supervised import add_model


@asynccontextmanager
async def engine(
    *answers: Any, path: str
) -> AsyncIterator[tuple[aiohttp.ClientSession, list[dict[str, Any]]]]:
    """Gives the answers one after the other, the last one for ever; and tells what it was asked."""
    asked: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.json_response(answers[min(len(asked), len(answers)) - 1])

    app = web.Application()
    app.add_routes([web.post(path, answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            yield session, asked
    finally:
        await runner.cleanup()


def chat_answer(*tokens: str, logprob: float | None = -1.0) -> dict[str, Any]:
    content = [{"token": token, "logprob": logprob} for token in tokens]
    message = {"role": "assistant", "content": "".join(tokens)}
    return {"choices": [{"index": 0, "message": message, "logprobs": {"content": content}}]}


def vectors(*values: list[float]) -> dict[str, Any]:
    return {"data": [{"index": index, "embedding": value} for index, value in enumerate(values)]}


@pytest.fixture
def version(settings: Settings) -> Version:
    return add_model(settings, "tiny")


@pytest.fixture
def encoder(settings: Settings) -> Version:
    return add_model(settings, "encoder", task="embed", format="onnx")


@pytest.fixture
def chat_bundle(tmp_path: Path) -> Path:
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    return tmp_path


async def test_a_chat_version_is_asked_through_its_template(version: Version, chat_bundle: Path) -> None:
    async with engine(chat_answer("Par", "is"), path="/v1/chat/completions") as (session, asked):
        await warm_up(session, version, chat_bundle)
    assert [body["messages"][0]["content"] for body in asked] == [PROMPTS[0]]


async def test_an_answer_that_ends_at_once_is_no_fault_when_another_prompt_is_answered(
    version: Version, chat_bundle: Path
) -> None:
    answers = chat_answer(), chat_answer("one"), chat_answer("never asked")
    async with engine(*answers, path="/v1/chat/completions") as (session, asked):
        await warm_up(session, version, chat_bundle)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (chat_answer(), "empty text"),
        (chat_answer(*["no"] * 16), "one token over and over"),
        (chat_answer("a", "b", logprob=float("nan")), "no finite numbers"),
        (chat_answer("a", "b", logprob=None), "no finite numbers"),
        ({"choices": []}, "no completion"),
        ({"error": {"message": "?"}}, "no completion"),
        (["a list"], "no JSON object"),
    ],
)
async def test_nonsense_is_refused(version: Version, chat_bundle: Path, answer: Any, fault: str) -> None:
    async with engine(answer, path="/v1/chat/completions") as (session, _):
        with pytest.raises(Unfit, match=fault):
            await warm_up(session, version, chat_bundle)


async def test_a_sound_encoder_passes(encoder: Version, tmp_path: Path) -> None:
    async with engine(vectors([1.0, 0.0], [0.0, 1.0]), path="/v1/embeddings") as (session, _):
        await warm_up(session, encoder, tmp_path)


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (vectors([1.0, 0.0]), "1 embeddings for 2"),
        (vectors([1.0, 0.0], []), "empty"),
        (vectors([1.0, float("nan")], [1.0, 0.0]), "not finite"),
        (vectors([0.0, 0.0], [1.0, 0.0]), "all zero"),
        (vectors([1.0, 0.0], [1.0, 0.0]), "the same embedding"),
        ({"data": [{"embedding": None}]}, "no embeddings"),
    ],
)
async def test_a_broken_encoder_is_refused(encoder: Version, tmp_path: Path, answer: Any, fault: str) -> None:
    async with engine(answer, path="/v1/embeddings") as (session, _):
        with pytest.raises(Unfit, match=fault):
            await warm_up(session, encoder, tmp_path)

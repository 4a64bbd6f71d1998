"""The process: light, quick to start, drains when told, and dies with its parent."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.serve.gateway.conftest import RunningGateway, chat_body, resident_mb, sse, wait_until
from tests.support.serve.scripted_engine import Connection

HEAVY = ("torch", "transformers", "onnxruntime", "numpy", "pandas", "alembic")


async def ten_words(connection: Connection) -> None:
    await connection.head()
    for _ in range(10):
        await connection.delta("word ")
        await asyncio.sleep(0.15)
    await connection.finish()


async def endless(connection: Connection) -> None:
    await connection.head()
    while True:
        await connection.delta("word ")
        await asyncio.sleep(0.1)


def test_no_model_library_is_imported() -> None:
    code = f"import sys, serve.gateway.app, serve.gateway.http.server; print([m for m in {HEAVY} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        == "[]\n"
    )


def test_it_starts_within_a_few_times_an_interpreter_that_imports_its_frameworks() -> None:
    """A ratio, since a machine may be busy: our own modules add little to FastAPI, SQLAlchemy and aiohttp."""

    def cpu_s(code: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    frameworks = (
        "import fastapi, uvicorn, uvloop, httptools, sqlalchemy.orm, aiohttp, structlog, pydantic_settings"
    )
    ours = "import serve.gateway.app, serve.gateway.http.server"
    cpu_s(ours)
    assert cpu_s(ours) < 2 * cpu_s(frameworks)


def test_two_hundred_streams_each_get_their_own_bytes_within_150_megabytes(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway()

    async def echo(connection: Connection) -> None:
        text = connection.request.body["messages"][0]["content"]
        await connection.head()
        for part in range(5):
            await connection.delta(f"{text}.{part} ")
            await asyncio.sleep(0.01)
        await connection.finish()

    gateway.add_engine("m").script = echo

    async def run() -> list[str]:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(
            base_url=gateway.url, timeout=60, trust_env=False, limits=limits
        ) as client:

            async def one(number: int) -> str:
                body = chat_body(text=f"s{number}", stream=True)
                response = await client.post("/v1/chat/completions", json=body)
                return "".join(event["choices"][0]["delta"]["content"] for event in sse(response.text)[:-1])

            return await asyncio.gather(*(one(number) for number in range(200)))

    for number, text in enumerate(asyncio.run(run())):
        assert text == "".join(f"s{number}.{part} " for part in range(5))
    assert gateway.metric("everlearn_requests_in_flight") == 0
    assert resident_mb(gateway.process.pid) < 150


def test_sigterm_refuses_new_work_finishes_streams_and_exits_zero(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway(drain_timeout_s=20)
    gateway.add_engine("m").script = ten_words
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(gateway.chat, stream=True)
        wait_until(lambda: gateway.metric("everlearn_requests_in_flight") == 1, "the stream runs")
        gateway.process.send_signal(signal.SIGTERM)
        wait_until(lambda: gateway.client.get("/ready").status_code == 503, "it says so")
        refused = gateway.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        events = sse(stream.result().text)
    assert (len(events), events[-1]) == (11, "[DONE]")
    assert gateway.process.wait(10) == 0


def test_a_stream_longer_than_the_grace_ends_with_an_error_event(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway(drain_timeout_s=0.5)
    engine = gateway.add_engine("m")
    engine.script = endless
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(gateway.chat, stream=True)
        wait_until(lambda: gateway.metric("everlearn_requests_in_flight") == 1, "the stream runs")
        gateway.process.send_signal(signal.SIGTERM)
        events = sse(stream.result().text)
    assert events[-1]["error"]["code"] == "shutting_down"
    assert gateway.process.wait(10) == 0
    assert engine.aborted_within(1)


def test_it_ends_when_its_parent_does(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    gateway.add_engine("m").script = endless
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(gateway.chat, stream=True)
        wait_until(lambda: gateway.metric("everlearn_requests_in_flight") == 1, "the stream runs")
        gateway.process.stdin.close()
        assert gateway.process.wait(10) == 0
        stream.result()


def test_killed_with_work_in_flight_it_starts_again(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    engine = gateway.add_engine("m")
    engine.script = endless
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(lambda: gateway.client.post("/v1/chat/completions", json=chat_body(stream=True)))
        wait_until(lambda: len(engine.received) == 1, "the stream runs")
        gateway.process.kill()
        with pytest.raises(Exception, match=r"(?i)peer|reset|incomplete|disconnect"):
            stream.result()
    assert engine.aborted_within(1)
    again = RunningGateway(Path(gateway.settings.home))
    try:
        engine.script = ten_words
        wait_until(lambda: again.chat(stream=True).status_code == 200, "it serves again")
    finally:
        assert again.stop() == 0


def test_a_taken_port_is_an_error_and_not_a_hang(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    environment = os.environ | {
        "EVERLEARN_HOME": str(gateway.settings.home), "EVERLEARN_SERVE__PORT": str(gateway.port),
    }  # fmt: skip
    began = time.monotonic()
    second = subprocess.run(
        [sys.executable, "-m", "serve.gateway"], env=environment, capture_output=True, timeout=60, check=False
    )
    assert second.returncode != 0
    assert time.monotonic() - began < 30

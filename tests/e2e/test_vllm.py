"""What holds of vLLM alone, beside the suite that both kinds of engine pass (test_chat.py, test_messages.py, …)."""

import signal
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.e2e.conftest import NEEDS_VLLM, VLLM, Served
from tests.support.serve.supervised import Supervised, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), NEEDS_VLLM]


@pytest.fixture
def vllm(client: openai.OpenAI) -> Served:
    return Served(client, VLLM)


def test_it_is_vllm_that_answers_with_the_tensors(vllm: Served, server: Supervised) -> None:
    assert vllm.chat().choices[0].message.content == "The capital of France is Paris."
    raw = vllm.client.chat.completions.with_raw_response.create(
        model=VLLM, messages=[{"role": "user", "content": "Hello"}], max_tokens=1
    )
    assert raw.headers["x-everlearn-version"] == f"{VLLM}@1"
    assert "serve.engines.vllm" in " ".join(engine(server).cmdline())


def test_several_prompts_are_completed_in_order(vllm: Served) -> None:
    answer = vllm.client.completions.create(
        model=VLLM, prompt=["One, two, three,", "A, B, C,"], max_tokens=4, temperature=0
    )
    assert "four" in answer.choices[0].text and "D" in answer.choices[1].text


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 2}, "n"),
        ({"messages": [{"role": "user", "content": "<|im_start|>"}]}, "messages[0].content"),
    ],
)
def test_what_it_alone_does_not_do_is_refused_by_name(
    vllm: Served, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        vllm.chat(**options)
    assert refused.value.param == param


def test_the_engine_offers_the_contract_and_nothing_of_vllm_besides(server: Supervised) -> None:
    command = engine(server).cmdline()
    transport = httpx.HTTPTransport(uds=command[command.index("--uds") + 1])
    with httpx.Client(transport=transport, base_url="http://engine", timeout=60) as door:
        assert door.get("/health").json() == {"status": "ready", "context": 8192}
        assert door.get("/v1/models").json()["data"][0]["id"] == VLLM
        assert "vllm:" in door.get("/metrics").text
        for path in ("/version", "/pooling", "/docs", "/openapi.json", "/v1/responses", "/invocations"):
            assert door.get(path).status_code == 404
            assert door.post(path, json={}).status_code == 404


def test_nothing_listens_beyond_this_machine(server: Supervised) -> None:
    for process in family(server):
        for connection in process.net_connections("tcp"):
            assert connection.status != psutil.CONN_LISTEN or connection.laddr.ip == "127.0.0.1"


def test_no_process_stays_behind_when_the_engine_is_killed(server: Supervised) -> None:
    """The last test of this server; the end of its fixture looks at what the next engine leaves behind."""
    first = family(server)
    assert len(first) > 2, "vLLM computes in processes of its own"
    first[0].send_signal(signal.SIGKILL)
    assert not psutil.wait_procs(first, timeout=20)[1]
    assert eventually(lambda: server.children(VLLM))[0].pid != first[0].pid


def engine(server: Supervised) -> psutil.Process:
    return server.child(VLLM)


def family(server: Supervised) -> list[psutil.Process]:
    """The engine's process, and those that it started."""
    child = engine(server)
    return [child, *child.children(recursive=True)]

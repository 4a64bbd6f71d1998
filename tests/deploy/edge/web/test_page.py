"""The chat page and its module with the real SmolLM2, in a real browser."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.deploy.edge.web.page_server import FaultyServer
from tests.support.serve.browser import IN_A_BROWSER, Driver

pytestmark = IN_A_BROWSER

QUESTION = "What is the capital of France?"
LEAST_TOKENS_PER_S = 15
"""Per second of the browser's CPU time, since a core may be shared with another test; docs/web.md: 26 on a quiet one."""

RUN = """
const done = arguments[arguments.length - 1];
const run = async () => { BODY };
run().then(done, (error) => done({error: {code: error.code, message: error.message}}));
"""
ASK = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def server(smollm2_site: Path) -> FaultyServer:
    return FaultyServer(smollm2_site)


@pytest.fixture
def network(server: FaultyServer) -> Iterator[None]:
    with server.running():
        yield


def script(driver: Driver, body: str) -> Any:
    return driver.execute_async_script(RUN.replace("BODY", body))


def create(driver: Driver, **request: Any) -> Any:
    return script(driver, f"return client.chat.completions.create({json.dumps(request)})")


def pages(driver: Driver) -> Iterator[psutil.Process]:
    """The processes that the browser's pages run in."""
    for process in psutil.Process(driver.service.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "--type=renderer" in process.cmdline():
                yield process


def page_bytes(driver: Driver) -> int:
    """What the largest of the browser's pages holds."""
    return max((page.memory_info().rss for page in pages(driver)), default=0)


def page_cpu_s(driver: Driver) -> float:
    return sum(page.cpu_times().user + page.cpu_times().system for page in pages(driver))


def tokens_per_cpu_s(driver: Driver) -> float:
    """Of an answer, the reading of its short prompt included."""
    request = {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "temperature": 0}
    before = page_cpu_s(driver)
    answer = create(driver, **request, max_tokens=32)
    return answer["usage"]["completion_tokens"] / (page_cpu_s(driver) - before)


def wait_until_ready(driver: Driver) -> str:
    """The page's status once it answers; its error where it does not."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        status = driver.find_element("id", "status")
        if status.get_attribute("data-error") or driver.find_element("id", "send").is_enabled():
            return status.text
        time.sleep(0.2)
    raise AssertionError("the page did not get ready")


def ask(driver: Driver) -> str:
    driver.execute_script("document.getElementById('temperature').value = 0")
    driver.execute_script("document.getElementById('max_tokens').value = 24")
    driver.find_element("id", "input").send_keys(QUESTION)
    driver.find_element("id", "send").click()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        notes = driver.find_elements("css selector", "article.assistant + small")
        if notes and notes[-1].text:
            return driver.find_elements("css selector", "article.assistant")[-1].text
        time.sleep(0.2)
    raise AssertionError("no answer")


@pytest.mark.usefixtures("network")
def test_the_module_speaks_openai_and_gives_its_memory_back(driver: Driver, server: FaultyServer) -> None:
    driver.get(server.url + "blank.html")
    loaded = script(
        driver,
        """
        const {EverlearnWeb} = await import("/everlearn_web/index.js");
        window.phases = new Set();
        window.client = await EverlearnWeb.load("./", {threads: 1, onProgress: ({phase}) => phases.add(phase)});
        return {...client.backend, model: client.model, phases: [...phases]};
        """,
    )
    assert (loaded["device"], loaded["threads"], loaded["model"]) == ("wasm", 1, "smollm2"), loaded
    assert loaded["phases"] == ["download", "start", "check"] and "WebGPU" in loaded["why"]

    answer = create(driver, **ASK)
    text = answer["choices"][0]["message"]["content"]
    assert "Paris" in text and answer["object"] == "chat.completion"
    assert answer["usage"]["completion_tokens"] <= 24
    assert answer["timings"]["predicted_per_second"] > 0
    assert max(tokens_per_cpu_s(driver) for _ in range(3)) > LEAST_TOKENS_PER_S

    streamed = script(
        driver,
        f"""
        const stream = await client.chat.completions.create({{...{json.dumps(ASK)}, stream: true, stop: ["Paris"]}});
        const chunks = [];
        for await (const chunk of stream) chunks.push(chunk);
        return chunks;
        """,
    )
    assert {chunk["object"] for chunk in streamed} == {"chat.completion.chunk"}
    assert (
        "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed)
        == text.split("Paris")[0]
    )
    assert streamed[-1]["choices"][0]["finish_reason"] == "stop"

    warm = {**ASK, "temperature": 1.5, "top_p": 0.95, "max_tokens": 8}
    drawn = [create(driver, **warm, seed=seed)["choices"][0]["message"]["content"] for seed in (1, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1

    for wrong, code in (
        ({"logprobs": True}, "unsupported"),
        ({"model": "another"}, "invalid_input"),
        ({"temperature": 3}, "invalid_input"),
        ({"messages": [{"role": "owner", "content": "x"}]}, "invalid_input"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "context_length_exceeded"),
        ({"speed": 1}, "invalid_input"),
    ):
        assert create(driver, **{**ASK, **wrong})["error"]["code"] == code, wrong
    assert script(driver, 'return client.embeddings.create({input: "x"})')["error"]["code"] == "unsupported"

    left = script(
        driver,
        f"""
        const abort = new AbortController();
        const stream = await client.chat.completions.create({{...{json.dumps(ASK)}, stream: true}}, {{signal: abort.signal}});
        let count = 0;
        for await (const chunk of stream) if (++count === 3) abort.abort();
        return count;
        """,
    )
    assert left["error"]["code"] == "cancelled"

    before = page_bytes(driver)
    closed = script(driver, f"client.close(); return client.chat.completions.create({json.dumps(ASK)})")
    assert closed["error"]["code"] == "closed"
    deadline = time.monotonic() + 20
    while page_bytes(driver) > before / 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert before > 500e6 and page_bytes(driver) < before / 2


def test_the_page_goes_on_without_a_network(driver: Driver, server: FaultyServer) -> None:
    with server.running():
        driver.get(server.url)
        assert re.fullmatch(r"smollm2 \d+ · WebAssembly, \d+ threads?", wait_until_ready(driver))
        answer = ask(driver)
        assert "Paris" in answer
    driver.refresh()
    assert wait_until_ready(driver).endswith("offline")
    assert ask(driver) == answer


def test_a_version_that_computes_other_numbers_is_refused_and_the_last_good_one_goes_on(
    driver: Driver, server: FaultyServer, smollm2_site: Path
) -> None:
    file = smollm2_site / "edge.json"
    kept = file.read_text()
    manifest = json.loads(kept)
    manifest["version"] += 1
    manifest["probes"][1]["top_logits"][3] += 3 * manifest["bound"]
    file.write_text(json.dumps(manifest))
    try:
        with server.running():
            driver.get(server.url)
            assert wait_until_ready(driver).endswith("an update was refused")
            why = driver.find_element("id", "status").get_attribute("title")
            assert f"{manifest['version']}-" in why and "differ by 0.3" in why
            assert "Paris" in ask(driver)
    finally:
        file.write_text(kept)

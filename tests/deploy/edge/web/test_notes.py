"""The page that searches notes, with the real MiniLM, in a real browser."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.deploy.edge.web.page_server import FaultyServer
from tests.support.serve.browser import HOSTILE, IN_A_BROWSER, Driver

pytestmark = IN_A_BROWSER

NOTES = [
    "Buy oat milk, rye bread and coffee beans.",
    "The dentist moved my appointment to Thursday.",
    f"The bicycle's rear brake squeals when wet. {HOSTILE}",
]
EMBED = """
const done = arguments[arguments.length - 1];
const run = async (input) => {
  const {EverlearnWeb} = await import("/everlearn_web/index.js");
  const client = await EverlearnWeb.load("./", {threads: 1});
  const {data, usage} = await client.embeddings.create({input});
  const long = await client.embeddings.create({input: "word ".repeat(3000)}).catch((error) => error.code);
  client.close();
  return {vectors: data.map(({embedding}) => embedding), usage, long};
};
run(arguments[0]).then(done, (error) => done(String(error)));
"""


def until(driver: Driver, script: str) -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := driver.execute_script(script):
            return found
        time.sleep(0.1)
    raise AssertionError(
        f"never: {script}; {driver.find_element('id', 'status').text}; {driver.get_log('browser')}"
    )


def add(driver: Driver, text: str) -> None:
    before = driver.execute_script(
        "document.getElementById('input').value = arguments[0];"
        "document.getElementById('form').requestSubmit();"
        "return document.querySelectorAll('#list li').length",
        text,
    )
    until(driver, f"return document.querySelectorAll('#list li').length > {before}")


def search(driver: Driver, query: str) -> list[str]:
    driver.execute_script(
        "document.getElementById('results').replaceChildren();"
        "document.getElementById('query').value = arguments[0];"
        "document.getElementById('search').requestSubmit()",
        query,
    )
    return until(
        driver,
        "const found = [...document.querySelectorAll('#results li p')].map((one) => one.textContent);"
        "return found.length ? found : null",
    )


@pytest.fixture(scope="module")
def server(minilm_site: Path) -> FaultyServer:
    return FaultyServer(minilm_site)


def test_notes_are_found_by_meaning_and_stay_in_the_browser(driver: Driver, server: FaultyServer) -> None:
    with server.running():
        driver.get(server.url)
        until(driver, "return !document.getElementById('query').disabled")
        for note in NOTES:
            add(driver, note)
        assert search(driver, "an appointment about teeth")[0] == NOTES[1]
    driver.refresh()  # without a network
    until(driver, "return !document.getElementById('query').disabled")
    assert search(driver, "something to repair")[0] == NOTES[2]
    assert driver.execute_script("return window.broken") is None
    driver.find_element("css selector", "#list li button").click()
    until(driver, "return document.querySelectorAll('#list li').length === 2")


def test_embeddings_are_those_of_the_model_in_python(
    driver: Driver, server: FaultyServer, minilm_site: Path, real_settings: Settings
) -> None:
    import onnxruntime
    from tokenizers import Tokenizer

    with server.running():
        driver.get(server.url + "edge.json")
        found = driver.execute_async_script(EMBED, NOTES)
    registry = Registry(real_settings)
    bundle = registry.path(registry.resolve("minilm@champion"))
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    session = onnxruntime.InferenceSession(str(minilm_site / "model.onnx"))
    for note, vector in zip(NOTES, found["vectors"], strict=True):
        ids = np.array([tokenizer.encode(note).ids])
        every = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        feeds = {one.name: every[one.name] for one in session.get_inputs()}
        (expected,) = session.run(["sentence_embedding"], feeds)
        cosine = np.dot(expected[0], vector) / np.linalg.norm(expected[0]) / np.linalg.norm(vector)
        assert cosine > 0.97
    assert found["usage"]["total_tokens"] > 20 and found["long"] == "context_length_exceeded"

"""Requests that share a batch, through the stock `openai` client."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from tests.e2e.conftest import READY_S, copy_home
from tests.support.serve.supervised import REAL, supervised

pytestmark = pytest.mark.slow

COUNTRIES = ["France", "Germany", "Italy", "Spain", "Japan", "China", "India", "Brazil"]
QUESTIONS = [
    template.format(country)
    for country in COUNTRIES
    for template in ("What is the capital of {}?", "Name one river in {}.")
]


def ask(client: openai.OpenAI, question: str) -> str:
    completion = client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=24
    )
    return completion.choices[0].message.content or ""


def at_once(client: openai.OpenAI) -> list[str]:
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        return list(pool.map(lambda question: ask(client, question), QUESTIONS))


@pytest.fixture
def invariant(real_home: Path, tmp_path: Path) -> Iterator[openai.OpenAI]:
    """A client of a server that answers alike in every batch."""
    settings = copy_home(real_home, tmp_path / "home")
    environment = {"EVERLEARN_STORE_URL": str(settings.store_url), "EVERLEARN_ONNX__BATCH_INVARIANT": "true"}
    with supervised(settings.home, "smollm2", command=REAL, **environment) as server:  # type: ignore[arg-type]
        server.ready(READY_S)
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def test_sixteen_at_once_say_what_each_says_alone(invariant: openai.OpenAI) -> None:
    assert at_once(invariant) == [ask(invariant, question) for question in QUESTIONS]


def test_sixteen_at_once_never_mix(client: openai.OpenAI) -> None:
    """Without batch invariance a near tie may fall the other way; another request's words may not come in."""
    for question, answer in zip(QUESTIONS, at_once(client), strict=True):
        foreign = [name for name in COUNTRIES if name not in question and name in answer]
        assert len(foreign) < 2, (question, answer)

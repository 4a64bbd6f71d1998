"""Jobs that cannot end well end in one clear error, and the champion serves on."""

import json
import re
import time
from collections.abc import Iterator

import openai
import pytest

from tests.support.circle import MODEL, RECIPE, make_home, served
from tests.train.data.reading import bombs

GOOD = json.dumps({"text": "In the beginning God created the heaven and the earth. " * 4}).encode() + b"\n"
FILES = {
    "schema": (GOOD + b'{"txet": "misspelt"}\n', "schema.jsonl:2"),
    "utf-8": (GOOD + b'{"text": "\xff\xfe"}\n', "utf-8.jsonl:2"),
    "line": (GOOD + b'{"text": "' + b"a" * 50_000_000 + b'"}\n', "line.jsonl:2"),
    "bomb": (bombs.one_value_for_256_rows(), "bomb.parquet:1"),
    "chat": (b'{"messages": [{"role": "user", "content": "no answer"}]}\n', "chat.jsonl:1"),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    home = tmp_path_factory.mktemp("bad") / "base"
    make_home(home)
    with (
        served(home, home.parent / "home") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as made,
    ):
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("fault", FILES)
def test_a_broken_file_is_refused_as_it_comes_and_names_the_line(client: openai.OpenAI, fault: str) -> None:
    content, place = FILES[fault]
    with pytest.raises(openai.BadRequestError, match=re.escape(place)):
        client.files.create(file=(place.partition(":")[0], content), purpose="fine-tune")
    assert_serves(client)


@pytest.mark.slow
def test_a_file_that_only_its_job_finds_unfit_ends_it_and_says_why(client: openai.OpenAI) -> None:
    file = client.files.create(file=("same.jsonl", 20 * GOOD), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, extra_body={"everlearn": RECIPE})
    deadline = time.monotonic() + 120
    while job.status not in ("succeeded", "failed"):
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "failed" and job.error and "19 exact duplicates" in job.error.message
    told = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
    assert sum("started" in message for message in told) == 1, told
    assert_serves(client)


def test_what_can_be_seen_at_once_is_refused_at_once(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="empty"):
        client.files.create(file=("empty.jsonl", b""), purpose="fine-tune")
    file = client.files.create(file=("good.jsonl", GOOD), purpose="fine-tune")
    with pytest.raises(openai.NotFoundError, match="tinny"):
        client.fine_tuning.jobs.create(model="tinny", training_file=file.id)
    with pytest.raises(openai.BadRequestError, match="did you mean 'epochs'"):
        client.fine_tuning.jobs.create(
            model=MODEL, training_file=file.id, extra_body={"everlearn": {"epoch": 3}}
        )
    assert_serves(client)


def assert_serves(client: openai.OpenAI) -> None:
    raw = client.completions.with_raw_response.create(model=MODEL, prompt="And", max_tokens=4)
    assert raw.headers["x-everlearn-version"] == "tiny@2"

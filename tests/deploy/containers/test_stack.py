"""The services of compose.yaml, run as containers would be: chat, batch, job, promotion, swap, and each one killed.

One stack for the whole file, with a tiny model; the tests build on one another in their order.
"""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import yaml

from continual.demo.texts import DOMAINS, write_domain
from tests.support.circle import RECIPE
from tests.support.serve.composed import OURS, Stack, own_network, why_not
from tests.support.serve.supervised import eventually
from tests.support.tiny_models import write_llama

pytestmark = [pytest.mark.slow, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

URL = "http://127.0.0.1:8000"
OVERRIDE = {
    "services": {
        # One core each, and leases that are soon over: a killed worker's job is taken up by the next one then.
        "engines": {"environment": {"EVERLEARN_ONNX__THREADS": "1"}},
        "worker": {
            "environment": {
                "EVERLEARN_CONTINUAL__LEASE_S": "5",
                "EVERLEARN_CONTINUAL__HEARTBEAT_S": "1",
                "EVERLEARN_CONTINUAL__THREADS": "1",
            }
        },
    }
}
"""What a user may write into compose.override.yaml."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, env_file: Path) -> Iterator[Stack]:
    """PostgreSQL and the broker run, the database is migrated, and a model is there."""
    folder = tmp_path_factory.mktemp("stack")
    override = folder / "override.yaml"
    override.write_text(yaml.safe_dump(OVERRIDE))
    with own_network():
        stack = Stack(folder, env_file, override)
        try:
            stack.init_postgres()
            for name in ("postgres", "valkey"):
                stack[name].start()
            for name in ("postgres", "valkey"):
                stack[name].wait_healthy()
            yield stack
        finally:
            stack.close()


@pytest.fixture(scope="module")
def set_up(stack: Stack) -> list[str]:
    """What two services `setup` print that start at once."""
    setup = stack["setup"]
    with ThreadPoolExecutor(2) as pool:
        # A new thread of this one's is in the same network.
        return [
            each.result() for each in [pool.submit(setup.run, *setup.described["command"]) for _ in range(2)]
        ]


@pytest.fixture(scope="module")
def key(stack: Stack, set_up: list[str]) -> str:
    """As docs/compose.md has the first user make it."""
    made = stack["gateway"].run("everlearn", "keys", "create", "tests", "--admin", "--json")
    return json.loads(made)["secret"]


@pytest.fixture(scope="module")
def running(stack: Stack, key: str) -> Stack:
    """Every service that can be had here runs and is healthy."""
    source = stack.folder / "home" / "tiny-hf"
    write_llama(source)
    for path in (source, *source.iterdir()):
        os.chown(path, 10001, 10001)
    engines = stack["engines"]
    engines.run("everlearn", "import", "/var/lib/everlearn/tiny-hf", "--name", "tiny")
    engines.run("everlearn", "compress", "tiny", "--to", "int8-onnx")
    names = ("engines", "gateway", "worker", "prometheus")
    for name in names:
        stack[name].start()
    for name in names:
        stack[name].wait_healthy(90)
    return stack


@pytest.fixture(scope="module")
def client(running: Stack, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=4, timeout=60) as client:
        yield client


def ask(client: openai.OpenAI, **options: Any) -> tuple[str, str]:
    """The version that answered, and its answer."""
    raw = client.chat.completions.with_raw_response.create(
        model="tiny",
        messages=[{"role": "user", "content": "And God said"}],
        max_tokens=8,
        temperature=0,
        **options,
    )
    return raw.headers["x-everlearn-version"], raw.parse().choices[0].message.content or ""


def serves(client: openai.OpenAI, version: str) -> None:
    eventually(lambda: ask(client)[0] == version, within_s=90)


def test_two_that_start_at_once_migrate_an_empty_database_and_make_one_key(
    stack: Stack, set_up: list[str]
) -> None:
    assert all("the database is up to date" in said for said in set_up)
    assert sorted("was made" in said for said in set_up) == [False, True]
    listed = json.loads(stack["setup"].run("everlearn", "keys", "ls", "--json"))
    assert [found["name"] for found in listed] == ["prometheus"]


def test_a_chat_is_answered_with_a_key_alone(client: openai.OpenAI) -> None:
    version, answer = ask(client)
    assert version == "tiny@2" and answer
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    assert httpx.post(f"{URL}/v1/chat/completions", json=body).status_code == 401


def test_prometheus_reads_the_gateway_with_its_own_key(running: Stack, client: openai.OpenAI) -> None:
    def target() -> dict[str, Any]:
        return httpx.get("http://127.0.0.1:9090/api/v1/targets").json()["data"]["activeTargets"][0]

    eventually(lambda: target()["health"] == "up", within_s=60)
    rules = httpx.get("http://127.0.0.1:9090/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert "EverlearnNoEngine" in {rule["name"] for rule in rules}
    metrics_key = (running.folder / "metrics" / "key").read_text()
    refused = httpx.post(
        f"{URL}/v1/chat/completions",
        json={"model": "tiny", "messages": [{"role": "user", "content": "hello"}]},
        headers={"authorization": f"Bearer {metrics_key}"},
    )
    assert refused.status_code == 403


def test_a_batch_is_worked_on(client: openai.OpenAI) -> None:
    lines = [
        {"custom_id": str(at), "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "tiny", "messages": [{"role": "user", "content": f"count to {at}"}], "max_tokens": 4}}
        for at in range(3)
    ]  # fmt: skip
    content = "\n".join(map(json.dumps, lines)).encode()
    uploaded = client.files.create(file=("batch.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    done = eventually(
        lambda: (found := client.batches.retrieve(batch.id)).status == "completed" and found, within_s=60
    )
    assert done.output_file_id
    answers = client.files.content(done.output_file_id).text.splitlines()
    assert sorted(json.loads(answer)["custom_id"] for answer in answers) == ["0", "1", "2"]
    assert all(json.loads(answer)["response"]["status_code"] == 200 for answer in answers)


def test_a_job_survives_its_worker_and_the_broker_and_the_new_champion_takes_over(
    running: Stack, client: openai.OpenAI, tmp_path: Path
) -> None:
    file = tmp_path / "scripture.jsonl"
    write_domain(next(one for one in DOMAINS if one.name == "scripture"), file)
    uploaded = client.files.create(file=file, purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=uploaded.id, extra_body={"everlearn": RECIPE}
    )
    eventually(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "running", within_s=60)
    for name in ("worker", "valkey"):
        running[name].kill()
    assert ask(client)[0] == "tiny@2", "without worker and broker the model answers on"
    for name in ("valkey", "worker"):
        running[name].start()
    over = ("succeeded", "failed", "cancelled")
    eventually(lambda: client.fine_tuning.jobs.retrieve(job.id).status in over, within_s=200)
    job = client.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.fine_tuned_model) == ("succeeded", "tiny@4"), running["worker"].output
    events = client.fine_tuning.jobs.list_events(job.id, limit=100)
    assert sum(event.message == "The job has successfully completed" for event in events) == 1
    serves(client, "tiny@4")
    running["engines"].run("everlearn", "rollback", "tiny")
    serves(client, "tiny@2")
    running["engines"].run("everlearn", "promote", "tiny@4")
    serves(client, "tiny@4")


@pytest.mark.parametrize("name", ["gateway", "engines", "postgres", "prometheus"])
def test_a_killed_service_comes_back_and_nothing_is_lost(
    running: Stack, client: openai.OpenAI, name: str
) -> None:
    before = ask(client)
    others = {other: running[other].main.pid for other in ("gateway", "engines", "worker") if other != name}
    running[name].kill()
    if name == "prometheus":
        assert ask(client) == before
    else:
        with pytest.raises(openai.APIError):
            ask(client.with_options(max_retries=0, timeout=20), user=name)
            time.sleep(3)  # a key that was just checked is taken for a moment more
            ask(client.with_options(max_retries=0, timeout=20), user=name)
    running[name].start()
    running[name].wait_healthy(90)
    assert eventually(lambda: answers(client), within_s=60) == before
    assert others == {other: running[other].main.pid for other in others}, "the others run on"


def answers(client: openai.OpenAI) -> tuple[str, str] | None:
    try:
        return ask(client)
    except openai.APIError:
        return None


def test_no_log_and_no_command_line_shows_a_secret(running: Stack, key: str, env_file: Path) -> None:
    secrets = [line.partition("=")[2] for line in env_file.read_text().splitlines() if "_PASSWORD=" in line]
    secrets += [key, (running.folder / "metrics" / "key").read_text()]
    logs = "".join(service.output for service in running.services.values() if service.log.exists())
    commands = "\n".join(
        " ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])
    )
    assert logs and "serve.gateway" in commands
    assert not [secret for secret in secrets if secret in logs or secret in commands]


def test_all_stop_in_order_and_end_running_answers(running: Stack, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "And God said"}], max_tokens=60, stream=True
    )
    pieces = [next(iter(stream))]
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(running["gateway"].stop)
        pieces += list(stream)
        assert stopping.result() < 30
    assert pieces[-1].choices[0].finish_reason in ("length", "stop")
    for name in ("worker", "engines", "prometheus", "valkey", "postgres"):
        running[name].stop()
    codes = {name: running[name].process.returncode for name in ("gateway", *OURS[2:3], "worker", "postgres")}  # type: ignore[union-attr]
    assert codes == dict.fromkeys(codes, 0)

"""Batches by the stock client on a running server with fake engines: answered, cancelled, refused, resumed."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Batch

from everlearn.registry.database import open_database
from everlearn.registry.keys import create_key, revoke_key
from everlearn.registry.usage import sum_usage
from everlearn.settings import Settings
from tests.support.serve.supervised import Supervised, add_model, eventually, supervised

pytestmark = pytest.mark.slow
CHAT = "/v1/chat/completions"
OVER = ("completed", "failed", "expired", "cancelled")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervised]:
    settings = Settings(home=tmp_path_factory.mktemp("batches") / "home")
    add_model(settings, "tiny")
    with supervised(settings.home, "tiny") as running:
        yield running.ready()


@pytest.fixture(scope="module")
def client(server: Supervised) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2, timeout=30)


def lines(count: int, text: str = "answer {}", model: str = "tiny") -> bytes:
    return b"".join(
        json.dumps({
            "custom_id": f"line-{n}",
            "method": "POST",
            "url": CHAT,
            "body": {"model": model, "messages": [{"role": "user", "content": text.format(n)}]},
        }).encode()
        + b"\n"
        for n in range(count)
    )  # fmt: skip


def start(client: openai.OpenAI, content: bytes, **fields: Any) -> Batch:
    file = client.files.create(file=("batch.jsonl", content), purpose="batch")
    return client.batches.create(
        **({"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"} | fields)  # type: ignore[arg-type]
    )


def ended(client: openai.OpenAI, batch: Batch, within_s: float = 60) -> Batch:
    return eventually(
        lambda: found if (found := client.batches.retrieve(batch.id)).status in OVER else None,
        within_s=within_s,
    )  # type: ignore[return-value]


def output(client: openai.OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def said(line: dict[str, Any]) -> str:
    return line["response"]["body"]["choices"][0]["message"]["content"].strip()


def test_every_line_is_answered_in_order_by_a_version_that_is_named(client: openai.OpenAI) -> None:
    batch = ended(client, start(client, lines(50), metadata={"of": "mine"}))
    assert (batch.status, batch.error_file_id, batch.metadata) == ("completed", None, {"of": "mine"})
    assert batch.request_counts and batch.request_counts.model_dump() == {
        "total": 50, "completed": 50, "failed": 0,
    }  # fmt: skip
    assert batch.completed_at and batch.in_progress_at and batch.finalizing_at
    found = output(client, batch.output_file_id)
    assert [(line["custom_id"], said(line)) for line in found] == [
        (f"line-{n}", f"answer {n}") for n in range(50)
    ]
    assert {line["response"]["version"] for line in found} == {"tiny@1"}
    assert client.files.retrieve(str(batch.output_file_id)).purpose == "batch_output"
    assert batch.id in [one.id for one in client.batches.list()]


def test_engines_are_told_that_a_batch_can_wait(client: openai.OpenAI) -> None:
    batch = ended(client, start(client, lines(1, "/body")))
    (line,) = output(client, batch.output_file_id)
    assert json.loads(said(line))["service_tier"] == "flex"


def test_a_request_that_kills_its_engine_is_tried_twice_and_takes_no_other_with_it(
    client: openai.OpenAI,
) -> None:
    deadly = lines(1, "/crash now").replace(b"line-0", b"deadly")
    batch = ended(client, start(client, lines(8, "/slow {}") + deadly), within_s=120)
    assert batch.status == "completed"
    assert [said(line) for line in output(client, batch.output_file_id)] == [str(n) for n in range(8)]
    (line,) = output(client, batch.error_file_id)
    assert line["custom_id"] == "deadly" and line["response"]["status_code"] == 503
    assert "stopped before it answered" in line["response"]["body"]["error"]["message"]


def test_an_answer_that_breaks_its_strict_schema_is_an_error(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    asked = b""
    for line, says in zip(lines(2).splitlines(), ('{"city": "Oslo"}', '{"town": "Oslo"}'), strict=True):
        body = json.loads(line)
        body["body"] |= {"response_format": shape, "messages": [{"role": "user", "content": says}]}
        asked += json.dumps(body).encode() + b"\n"
    batch = ended(client, start(client, asked))
    (right,), (wrong,) = output(client, batch.output_file_id), output(client, batch.error_file_id)
    assert (right["custom_id"], said(right)) == ("line-0", '{"city": "Oslo"}')
    assert wrong["custom_id"] == "line-1" and wrong["response"]["status_code"] == 502
    assert wrong["response"]["body"]["error"]["code"] == "schema_violation"


def test_a_file_that_is_wrong_fails_before_the_first_request(client: openai.OpenAI) -> None:
    batch = ended(client, start(client, lines(2) + b"{nonsense\n"))
    assert batch.status == "failed" and batch.failed_at and batch.output_file_id is None
    assert batch.errors and batch.errors.data
    assert [(error.line, error.code) for error in batch.errors.data] == [(3, "invalid_input")]
    with pytest.raises(openai.BadRequestError, match="cannot be cancelled"):
        client.batches.cancel(batch.id)


def test_a_cancelled_batch_keeps_what_was_answered(client: openai.OpenAI) -> None:
    batch = start(client, lines(200, "/slow {}"))
    eventually(
        lambda: (client.batches.retrieve(batch.id).request_counts or batch.request_counts).completed > 20
    )  # type: ignore[union-attr]
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = ended(client, batch)
    assert batch.status == "cancelled" and batch.request_counts
    found = output(client, batch.output_file_id)
    assert 20 < len(found) == batch.request_counts.completed < 200


def test_two_batches_go_on_together(client: openai.OpenAI) -> None:
    long = start(client, lines(150, "/slow {}"))
    short = ended(client, start(client, lines(5)))
    assert short.status == "completed"
    assert client.batches.retrieve(long.id).status == "in_progress"
    client.batches.cancel(long.id)


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"endpoint": "/v1/responses"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-none"}, "input_file_id"),
        ({"extra_body": {"priority": 1}}, "priority"),
    ],
)
def test_what_is_not_offered_is_refused_by_name(
    client: openai.OpenAI, changed: dict[str, Any], param: str
) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
        start(client, lines(1), **changed)
    assert refused.value.param == param  # type: ignore[attr-defined]


def test_a_batch_survives_kills_of_its_worker_the_gateway_and_the_engine(
    server: Supervised, client: openai.OpenAI
) -> None:
    batch = start(client, lines(400, "one two three four {}"))

    def answered() -> int:
        counts = client.batches.retrieve(batch.id).request_counts
        return counts.completed if counts else 0

    for part, at in (
        ("serve.batches", 20),
        ("serve.gateway", 80),
        ("fake_engine", 140),
        ("serve.batches", 200),
    ):
        eventually(lambda: answered() > at, within_s=60)  # noqa: B023
        server.child(part).kill()
        if part == "serve.gateway":
            eventually(lambda: server.answers(), within_s=30)
    batch = ended(client, batch, within_s=120)
    assert batch.status == "completed" and batch.request_counts and batch.request_counts.completed == 400
    found = output(client, batch.output_file_id)
    assert [(line["custom_id"], said(line)) for line in found] == [
        (f"line-{n}", f"one two three four {n}") for n in range(400)
    ]


def test_another_key_sees_nothing_of_a_batch(server: Supervised, client: openai.OpenAI) -> None:
    """Last here: from the first key on, the server asks for one."""
    database = open_database(Settings(home=Path(str(server.log.parent / "home"))))
    (one, key), (other, _), (scoped, _) = (
        create_key(database, name, models)
        for name, models in (("one", None), ("other", None), ("scoped", ["x"]))
    )
    mine, theirs, narrow = (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0)
        for secret in (one, other, scoped)
    )
    eventually(lambda: _needs_key(client))
    batch = ended(mine, start(mine, lines(2)))
    assert batch.status == "completed" and list(theirs.batches.list()) == []
    for attempt in (
        lambda: theirs.batches.retrieve(batch.id),
        lambda: theirs.batches.cancel(batch.id),
        lambda: theirs.files.content(str(batch.output_file_id)),
        lambda: theirs.files.content(batch.input_file_id),
        lambda: theirs.batches.create(
            input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"
        ),
        lambda: theirs.batches.list(after=batch.id),
    ):
        with pytest.raises(openai.NotFoundError):
            attempt()
    refused = ended(narrow, start(narrow, lines(1)))
    assert refused.errors and refused.errors.data and refused.errors.data[0].code == "forbidden"
    later = start(mine, lines(100, "/slow {}"))
    revoke_key(database, key.id)
    os.kill(server.child("serve.batches").pid, 9)
    row = eventually(lambda: _row(database, later.id))
    assert row.state == "failed" and "not valid any more" in row.errors[0]["message"]


@pytest.mark.parametrize("end", ["revoked", "expired"])
def test_a_batch_that_runs_ends_with_its_key(server: Supervised, client: openai.OpenAI, end: str) -> None:
    database = open_database(Settings(home=Path(str(server.log.parent / "home"))))
    secret, key = create_key(database, end, expires_at=time.time() + 4 if end == "expired" else None)
    mine = openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0)
    eventually(lambda: _needs_key(client))
    batch = start(mine, lines(2000, "/slow {}"))
    eventually(lambda: (counts := mine.batches.retrieve(batch.id).request_counts) and counts.completed)
    if end == "revoked":
        revoke_key(database, key.id)
    row = eventually(lambda: _row(database, batch.id), within_s=10)
    assert (row.state, row.errors[0]["code"]) == ("failed", "key_not_valid")
    assert ("was revoked" if end == "revoked" else "has expired") in row.errors[0]["message"]
    assert 0 < row.completed < 1000

    def used() -> int:
        return sum(
            one.requests for one in sum_usage(database, "2000-01-01", "2999-12-31") if one.what == key.id
        )

    time.sleep(2.5)  # what was counted is added every two seconds
    before = used()
    time.sleep(2.5)
    assert used() == before, "nothing more is asked"


def test_a_batch_is_counted_for_its_key_and_ends_where_its_budget_does(
    server: Supervised, client: openai.OpenAI
) -> None:
    database = open_database(Settings(home=Path(str(server.log.parent / "home"))))
    secret, key = create_key(database, "budget", tokens_per_month=30)
    mine = openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0)
    eventually(lambda: _needs_key(client))
    batch = ended(mine, start(mine, lines(60)))
    answered, refused = output(mine, batch.output_file_id), output(mine, batch.error_file_id)
    assert len(answered) + len(refused) == 60 and 10 <= len(answered) < 30
    assert {line["response"]["body"]["error"]["code"] for line in refused} == {"insufficient_quota"}

    def used() -> tuple[int, int, int] | None:
        for one in sum_usage(database, "2000-01-01", "2999-12-31"):
            if one.what == key.id and one.requests == 60:
                return one.failed, one.prompt_tokens, one.completion_tokens
        return None

    assert eventually(used) == (len(refused), len(answered), 2 * len(answered))
    with pytest.raises(openai.RateLimitError):
        eventually(lambda: start(mine, lines(1)) and None)


def _needs_key(client: openai.OpenAI) -> bool:
    try:
        client.models.list()
    except openai.AuthenticationError:
        return True
    return False


def _row(database: Any, batch_id: str) -> Any:
    from serve.batches.table import Batches

    batch = Batches(Settings(), database).get(batch_id)
    return batch if batch.state in OVER else None

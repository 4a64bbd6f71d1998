"""Against OpenAI's API: files refused as they come, one file for both, the suffix in the name, models.delete."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

import openai
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from continual.queue.jobs import Jobs
from everlearn.registry.keys import create_key
from everlearn.registry.registry import Registry
from serve.protocol.chat import ChatRequest
from serve.protocol.parsing import parse
from tests.continual.queue.conftest import add_model
from tests.serve.gateway.conftest import RunningGateway, wait_until

LINE = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n'


@pytest.fixture(scope="module")
def door(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    running = start_gateway()
    create_key(running.db, "first")
    registry = Registry(running.settings)
    for _ in range(5):
        add_model(registry, "m")
    running.add_engine("m")
    wait_until(lambda: running.chat().status_code == 401, "the key is noticed")
    return running


def client_of(door: RunningGateway, name: str, **rights: Any) -> tuple[openai.OpenAI, str]:
    secret, key = create_key(door.db, name, **rights)
    return openai.OpenAI(base_url=f"{door.url}/v1", api_key=secret, max_retries=0), key.id


@pytest.fixture(scope="module")
def trainer(door: RunningGateway) -> openai.OpenAI:
    return client_of(door, "trainer", train=True)[0]


def finished(door: RunningGateway, client: openai.OpenAI, version: int, **said: Any) -> Any:
    """A job of the client's that made ``m@version``, as a worker ends one."""
    file = client.files.create(file=("a.jsonl", LINE * 10), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="m", training_file=file.id, **said)
    jobs = Jobs(door.settings)
    lease = jobs.claim(job.id, "test")
    assert lease
    jobs.finish(lease, "succeeded", result_model=f"m@{version}")
    return client.fine_tuning.jobs.retrieve(job.id)


def parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": ["a line of text"] * 3}), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", LINE * 3 + b'{"messages": 5}\n', r"a\.jsonl:4: .*not a list of messages"),
        ("a.jsonl", LINE + b"{broken\n", r"a\.jsonl:2"),
        ("a.jsonl", b"\n\n", r"a\.jsonl"),
        ("a.jsonl.gz", gzip.compress(LINE * 100, mtime=0)[:-20], r"a\.jsonl\.gz"),
        ("a.parquet", parquet_bytes()[:-9], r"a\.parquet"),
        ("a.parquet", LINE, r"a\.parquet: does not begin as Parquet does"),
        ("a.txt", b"PK\x03\x04rest", r"a\.txt.*ZIP archive"),
        ("a.txt", b"\xff\xfea\x00", r"a\.txt.*UTF-16"),
    ],
)
def test_a_file_that_cannot_be_learnt_from_is_refused_as_it_comes(
    door: RunningGateway, trainer: openai.OpenAI, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        trainer.files.create(file=(name, content), purpose="fine-tune")
    assert refused.value.param == "file"
    assert trainer.files.list(purpose="fine-tune").data == []
    assert not list((door.settings.home / "files").glob(".partial*"))


def test_good_files_and_those_for_batches_are_kept(trainer: openai.OpenAI) -> None:
    for name, content, purpose in (
        ("a.jsonl", LINE, "fine-tune"),
        ("a.jsonl.gz", gzip.compress(LINE, mtime=0), "fine-tune"),
        ("a.parquet", parquet_bytes(), "fine-tune"),
        ("a.txt", b"Words.", "fine-tune"),
        ("requests.jsonl", b"{broken", "batch"),
    ):
        file = trainer.files.create(file=(name, content), purpose=purpose)  # type: ignore[arg-type]
        assert trainer.files.delete(file.id).deleted


def test_what_is_learnt_cannot_be_what_is_measured(trainer: openai.OpenAI) -> None:
    one, same = (
        trainer.files.create(file=(f"{name}.jsonl", LINE * 10), purpose="fine-tune") for name in "ab"
    )
    other = trainer.files.create(file=("c.jsonl", LINE * 11), purpose="fine-tune")
    for validation in (one, same):
        with pytest.raises(openai.BadRequestError, match="same bytes") as refused:
            trainer.fine_tuning.jobs.create(model="m", training_file=one.id, validation_file=validation.id)
        assert refused.value.param == "validation_file"
    job = trainer.fine_tuning.jobs.create(model="m", training_file=one.id, validation_file=other.id)
    trainer.fine_tuning.jobs.cancel(job.id)


def test_the_suffix_is_in_the_name_and_the_name_is_one_that_requests_take(
    door: RunningGateway, trainer: openai.OpenAI
) -> None:
    named = finished(door, trainer, 2, suffix="Größe & Co")
    assert named.fine_tuned_model == "ft:m:everlearn:grosse-co:2"
    assert finished(door, trainer, 3).fine_tuned_model == "m@3"
    body = b'{"model": "ft:m:everlearn:grosse-co:2", "messages": [{"role": "user", "content": "x"}]}'
    assert parse(ChatRequest, body).model == "m@2"
    assert trainer.models.retrieve("ft:m:everlearn:x:1").id == "m", "the version that is served"
    answer = trainer.chat.completions.create(
        model="ft:m:everlearn:x:1", messages=[{"role": "user", "content": "x"}]
    )
    assert answer.choices
    with pytest.raises(openai.NotFoundError):
        trainer.models.retrieve(named.fine_tuned_model)


def test_a_key_deletes_what_its_own_jobs_made_and_nothing_else(
    door: RunningGateway, trainer: openai.OpenAI
) -> None:
    registry = Registry(door.settings)
    plain, _ = client_of(door, "plain")
    stranger, _ = client_of(door, "stranger", train=True)
    admin, _ = client_of(door, "admin", admin=True)
    made = finished(door, trainer, 4, suffix="mine").fine_tuned_model
    for other, kind in ((plain, openai.PermissionDeniedError), (stranger, openai.NotFoundError)):
        with pytest.raises(kind):
            other.models.delete(made)
    for missing in ("m@1", "m@99", "nothing@1", "ft:m:everlearn:mine:99", "../m@4"):
        with pytest.raises(openai.NotFoundError):
            trainer.models.delete(missing)
    for vague in ("m", "m@champion"):
        with pytest.raises(openai.BadRequestError, match="Name the version"):
            admin.models.delete(vague)
    with pytest.raises(openai.ConflictError, match="being served"):
        admin.models.delete("m@1")
    assert [one.version for one in registry.versions("m")] == [5, 4, 3, 2, 1]
    gone = trainer.models.delete(made)
    assert (gone.id, gone.object, gone.deleted) == (made, "model", True)
    with pytest.raises(openai.NotFoundError):
        trainer.models.delete(made)
    assert admin.models.delete("m@5").deleted
    assert {one.version for one in registry.versions("m")} == {1, 2, 3}

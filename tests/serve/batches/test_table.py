"""Who may write a batch's row, and what a page of answers is."""

import pytest

from continual.queue.files import BATCH, Client, Files
from everlearn.errors import Conflict, InvalidInput, NotFound
from everlearn.registry.audit import list_acts
from everlearn.settings import Settings
from serve.batches.table import Answer, Batch, Batches, LeaseLost

CHAT = "/v1/chat/completions"


@pytest.fixture
def batches(settings: Settings) -> Batches:
    return Batches(settings)


def make(batches: Batches, purpose: str = BATCH, client: Client | None = None) -> Batch:
    files = Files(batches.settings, batches.database)
    with files.uploading() as upload:
        upload.write(b"{}\n")
        file = files.keep(upload, "a.jsonl", purpose=purpose, client=client)
    return batches.create(endpoint=CHAT, input_file=file.id, labels={"x": "y"}, client=client)


def test_only_the_newest_lease_writes(batches: Batches) -> None:
    batch = make(batches)
    first = batches.claim(batch, "one")
    assert first and batches.claim(batch, "two") is None
    batches.begin(first, 3)
    second = batches.claim(batches.get(batch.id), "two")
    assert second
    for stale in (
        lambda: batches.beat(first),
        lambda: batches.save(first, [Answer(1, False, "{}")]),
        lambda: batches.finish(first, "completed"),
    ):
        with pytest.raises(LeaseLost):
            stale()
    batches.save(second, [Answer(1, False, "{}"), Answer(3, True, "{}")])
    now = batches.get(batch.id)
    assert (now.total, now.completed, now.failed, now.state) == (3, 1, 1, "in_progress")
    assert batches.answered(batch.id) == {1, 3}


def test_an_answer_is_kept_once(batches: Batches) -> None:
    lease = batches.claim(make(batches), "one")
    assert lease
    batches.save(lease, [Answer(1, False, "first")])
    with pytest.raises(Exception, match="UNIQUE"):
        batches.save(lease, [Answer(1, False, "second")])
    assert list(batches.contents(lease.batch_id, failed=False)) == ["first"]
    assert batches.get(lease.batch_id).completed == 1


def test_answers_come_out_in_the_order_of_the_lines_over_many_pages(batches: Batches) -> None:
    lease = batches.claim(make(batches), "one")
    assert lease
    for start in (1201, 1, 601):
        batches.save(lease, [Answer(n, n % 2 == 0, str(n)) for n in range(start, start + 600)])
    assert list(batches.contents(lease.batch_id, failed=False)) == [str(n) for n in range(1, 1801, 2)]
    batches.finish(lease, "completed")
    assert batches.answered(lease.batch_id) == set()


def test_a_cancelled_batch_says_so_and_one_that_is_over_refuses(batches: Batches) -> None:
    batch = make(batches)
    assert batches.cancel(batch.id).state == "cancelling" == batches.cancel(batch.id).state
    (act,) = list_acts(batches.database)
    assert (act.act, act.subject) == ("batch.cancel", batch.id)
    lease = batches.claim(batches.get(batch.id), "one")
    assert lease and batches.begin(lease, 1).state == "cancelling"
    assert batches.finish(lease, "cancelled").state == "cancelled" == batches.cancel(batch.id).state
    other = make(batches)
    lease = batches.claim(other, "one")
    assert lease
    batches.finish(lease, "completed")
    with pytest.raises(InvalidInput, match="completed already"):
        batches.cancel(other.id)


def test_a_file_stays_while_a_batch_needs_it(batches: Batches) -> None:
    batch = make(batches)
    files = Files(batches.settings, batches.database)
    with pytest.raises(Conflict, match=batch.id):
        files.delete(batch.input_file)
    lease = batches.claim(batch, "one")
    assert lease
    batches.finish(lease, "failed", [{"code": "x"}])
    files.delete(batch.input_file)


def test_a_file_for_something_else_and_another_clients_are_refused(batches: Batches) -> None:
    with pytest.raises(InvalidInput, match="'fine-tune'"):
        make(batches, purpose="fine-tune")
    mine = make(batches, client=Client("one"))
    with pytest.raises(NotFound):
        batches.get(mine.id, client=Client("two"))
    with pytest.raises(NotFound):
        batches.create(endpoint=CHAT, input_file=mine.input_file, labels={}, client=Client("two"))
    assert [one.id for one in batches.list(client=Client("one"))] == [mine.id]
    assert batches.list(client=Client("two")) == []

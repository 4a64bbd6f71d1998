"""Webhooks: real receivers on loopback, the real database, and OpenAI's client to verify what comes."""

import re
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from openai import InvalidWebhookSignatureError
from starlette.testclient import TestClient

from continual.queue.files import Client
from continual.queue.states import Lease, LeaseLost
from continual.webhooks.courier import Courier
from continual.webhooks.deliveries import event_body
from continual.webhooks.endpoints import add_endpoint, list_endpoints, parse_url, risk
from continual.webhooks.signature import new_secret, signed_headers
from everlearn.errors import InvalidInput
from everlearn.registry.keys import create_key, revoke_key
from tests.continual.queue.conftest import ROOT, Installation, wait_until
from tests.continual.queue.webhooks import (
    MakeReceiver,
    cancelled,
    deliveries,
    running,
    states,
    succeed,
    unwrap,
)

# What is told ---------------------------------------------------------------------------------------------------


def fail(installation: Installation) -> str:
    lease = running(installation)
    installation.jobs.finish(lease, "failed", error={"code": "gate_refused", "message": "it forgets"})
    return lease.job_id


def give_up(installation: Installation) -> str:
    job = installation.create()
    for _ in range(3):
        lease = installation.jobs.claim(job.id, "one")
        assert lease
        installation.jobs.retry(lease, "its worker is gone")
    return job.id


def lose_its_key(installation: Installation) -> str:
    _, key = create_key(installation.jobs.database, "trainer", train=True)
    client = Client(key.id)
    file = installation.files.add(installation.settings.home / "rfc.jsonl", client=client)
    job = installation.create(training_file=file.id, client=client)
    revoke_key(installation.jobs.database, key.id)
    installation.jobs.end_without_keys()
    return job.id


@pytest.mark.parametrize(
    ("end", "state"),
    [
        (succeed, "succeeded"),
        (fail, "failed"),
        (give_up, "failed"),
        (lose_its_key, "failed"),
        (lambda installation: cancelled(installation).id, "cancelled"),
    ],
    ids=["succeeds", "fails", "gives up", "loses its key", "is cancelled"],
)
def test_openais_client_verifies_and_types_the_event_of_a_job_that(
    installation: Installation,
    receiver: MakeReceiver,
    send_due: Callable[[], Courier],
    end: Callable[[Installation], str],
    state: str,
) -> None:
    """And refuses it once a byte of it is another, by another secret, and when it is old."""
    hook = receiver()
    secret, endpoint = add_endpoint(installation.jobs.database, hook.url)
    send_due()
    id = end(installation)
    wait_until(lambda: states(installation) == ["delivered"], "delivered")
    [(headers, body)] = hook.received
    event = unwrap(secret, (headers, body))
    assert type(event).__name__ == f"FineTuningJob{state.capitalize()}WebhookEvent"
    assert (event.type, event.object, event.data.id) == (f"fine_tuning.job.{state}", "event", id)
    assert event.id == headers["webhook-id"] and event.id.startswith("evt_")
    job = installation.jobs.get(id)
    assert job.state == state and job.finished_at and abs(event.created_at - job.finished_at) <= 1
    assert headers["content-type"] == "application/json"

    later = str(int(headers["webhook-timestamp"]) + 1)
    old = signed_headers(secret, event.id, int(time.time()) - 301, body)
    for key, changed in (
        (secret, (headers, body.replace(id.encode(), b"ftjob-other"))),
        (secret, (headers | {"webhook-timestamp": later}, body)),
        (secret, (headers | {"webhook-id": "evt_other"}, body)),
        (secret, (headers | old, body)),
        (new_secret(), (headers, body)),
    ):
        with pytest.raises(InvalidWebhookSignatureError):
            unwrap(key, changed)
    [listed] = list_endpoints(installation.jobs.database)
    assert listed.id == endpoint.id and listed.answer == "HTTP 204" and listed.answered_at


def test_the_signature_is_that_of_the_standards_example() -> None:
    headers = signed_headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_receiver_of_the_docs_takes_events_and_refuses_forgeries() -> None:
    page = (ROOT / "docs" / "continual.md").read_text()
    [code] = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "unwrap" in block]
    secret, names = new_secret(), dict[str, Any]()
    exec(code.replace("whsec_…", secret), names)  # noqa: S102 (the page's)
    body = event_body("evt_1", "fine_tuning.job.failed", "ftjob-1", time.time())
    with TestClient(names["app"]) as client:
        headers = signed_headers(secret, "evt_1", int(time.time()), body)
        assert client.post("/hook", content=body, headers=headers).status_code == 200
        assert client.post("/hook", content=body + b" ", headers=headers).status_code == 400


def test_an_endpoint_hears_of_the_jobs_of_its_key_and_of_its_events(installation: Installation) -> None:
    database = installation.jobs.database
    _, key = create_key(database, "trainer", train=True)
    _, other = create_key(database, "other", train=True)
    ids = {
        "all": add_endpoint(database, "https://example.com/all")[1].id,
        "key": add_endpoint(database, "https://example.com/key", key="trainer")[1].id,
        "ends": add_endpoint(database, "https://example.com/ends", events=["succeeded"])[1].id,
    }
    client = Client(key.id)
    file = installation.files.add(installation.settings.home / "rfc.jsonl", client=client)
    its = cancelled(installation, training_file=file.id, client=client)
    client = Client(other.id)
    file = installation.files.add(installation.settings.home / "rfc.jsonl", client=client)
    others = cancelled(installation, training_file=file.id, client=client)
    nobodys = succeed(installation)
    told = {
        name: {row.job_id for row in deliveries(installation) if row.endpoint_id == id}
        for name, id in ids.items()
    }
    assert told == {"all": {its.id, others.id, nobodys}, "key": {its.id}, "ends": {nobodys}}
    of_its = {row.event_id for row in deliveries(installation) if row.job_id == its.id}
    assert len(of_its) == 1  # one event, whoever hears of it


def test_an_end_that_is_rolled_back_tells_nothing(installation: Installation) -> None:
    add_endpoint(installation.jobs.database, "https://example.com")
    lease = running(installation)

    def fall(connection: object) -> None:
        raise RuntimeError("while the promotion is written")

    with pytest.raises(RuntimeError):
        installation.jobs.finish(lease, "succeeded", result_model="tiny@1", within=fall)
    assert deliveries(installation) == []
    stale = Lease(lease.job_id, lease.fence - 1, lease.owner)
    with pytest.raises(LeaseLost):
        installation.jobs.finish(stale, "succeeded", result_model="tiny@1")
    assert deliveries(installation) == []
    installation.jobs.cancel(lease.job_id)
    installation.jobs.cancel(lease.job_id)
    with pytest.raises(LeaseLost):
        installation.jobs.finish(lease, "succeeded", result_model="tiny@1")
    assert [row.type for row in deliveries(installation)] == ["fine_tuning.job.cancelled"]


# Endpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://example.com/x", "neither http:// nor https://"),
        ("example.com/x", "neither http:// nor https://"),
        ("https://", "names no host"),
        ("https:///hook", "names no host"),
        ("https://me:pass@example.com", "a user's name or password"),
        ("https://exa mple.com", "names no host"),
        ("https://example.com:99999", "port 99999"),
        ("https://example.com:port", "no URL"),
        ("https://xn--a/", "no URL"),
        ("https://example.com/\nx", "no URL"),
        ("https://example.com/" + "a" * 2048, "at most 2048"),
    ],
)
def test_a_url_that_nothing_could_be_sent_to_is_refused(url: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        parse_url(url)
    assert caught.value.param == "url" and "https://example.com/hooks" in caught.value.message
    assert "pass@" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("https://example.com", False),
        ("http://127.0.0.1:8080/x", False),
        ("http://[::1]/x", False),
        ("http://10.1.2.3/x", False),
        ("http://localhost/x", False),
        ("http://receiver:9000/x", False),
        ("http://hooks.internal/x", False),
        ("http://example.com/x", True),
        ("http://8.8.8.8/x", True),
    ],
)
def test_http_beyond_the_own_network_is_warned_of(url: str, warned: bool) -> None:
    assert (risk(url) is not None) == warned


def test_an_unknown_event_and_a_key_that_creates_no_jobs_are_refused(installation: Installation) -> None:
    database = installation.jobs.database
    create_key(database, "asks")
    _, ended = create_key(database, "ended", train=True)
    revoke_key(database, ended.id)
    for fields, said in (
        ({"events": ["suceeded"]}, "did you mean 'succeeded'"),
        ({"events": []}, "leave events out"),
        ({"key": "asks"}, "keys create NAME --train"),
        ({"key": ended.id}, "not valid any more"),
    ):
        with pytest.raises(InvalidInput, match=said):
            add_endpoint(database, "https://example.com", **fields)
    assert list_endpoints(database) == []


def test_who_ends_jobs_loads_nothing_that_sends() -> None:
    """The gateway does, and stays light."""
    code = "import sys, continual.queue.jobs; sys.exit('httpx' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

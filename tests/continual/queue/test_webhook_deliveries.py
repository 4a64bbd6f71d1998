"""How webhooks are sent: by real couriers and real workers, to real receivers on loopback."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler

import pytest

from continual.queue.jobs import Jobs
from continual.webhooks import sender
from continual.webhooks.courier import Courier
from continual.webhooks.deliveries import (
    MAX_TRIES,
    WAITS_S,
    claim_due,
    sweep_deliveries,
    take_answer,
    wait_after,
)
from continual.webhooks.endpoints import add_endpoint, list_endpoints, remove_endpoint
from continual.webhooks.sender import Answer, send
from continual.webhooks.signature import new_secret
from tests.continual.queue.conftest import ROOT, Installation, wait_until
from tests.continual.queue.test_jobs import at_once
from tests.continual.queue.webhooks import (
    MakeReceiver,
    cancelled,
    change,
    deliveries,
    states,
    succeed,
    unwrap,
)

# How it is sent -------------------------------------------------------------------------------------------------


def test_what_failed_is_sent_again_under_its_id_with_a_signature_of_its_time(
    installation: Installation, receiver: MakeReceiver, send_due: Callable[[], Courier]
) -> None:
    hook = receiver(500, 204)
    secret, _ = add_endpoint(installation.jobs.database, hook.url)
    send_due()
    cancelled(installation)
    wait_until(lambda: list_endpoints(installation.jobs.database)[0].answer == "HTTP 500", "the first try")
    [row] = deliveries(installation)
    assert (row.state, row.tries) == ("waiting", 1) and 3 < row.due_at - time.time() <= 6
    time.sleep(1.1)
    change(installation, due_at=0)
    wait_until(lambda: states(installation) == ["delivered"], "delivered")
    (first, one), (second, other) = hook.received
    assert one == other and first["webhook-id"] == second["webhook-id"]
    assert int(second["webhook-timestamp"]) > int(first["webhook-timestamp"])
    assert unwrap(secret, (second, other)).type == "fine_tuning.job.cancelled"


def test_the_waits_grow_to_a_day_and_a_receiver_may_ask_for_more() -> None:
    for tries, wait_s in enumerate(WAITS_S, 1):
        assert all(wait_s <= wait_after(tries) <= 1.2 * wait_s for _ in range(20))
    assert len({wait_after(2) for _ in range(20)}) > 1
    assert wait_after(1, 100) == 100 and wait_after(1, 10**8) == 86_400 and wait_after(2, 1) >= 300


@pytest.mark.parametrize(
    ("header", "low_s", "high_s"),
    [
        (lambda: "7200", 7100, 7200),
        (lambda: formatdate(time.time() + 600, usegmt=True), 500, 601),
        (lambda: "999999999", 86_000, 86_400),
        (lambda: "soon", 3, 6),
        (lambda: "-5", 3, 6),
    ],
    ids=["seconds", "a date", "too long", "no time", "negative"],
)
def test_retry_after_is_honoured_within_a_day(
    installation: Installation,
    receiver: MakeReceiver,
    send_due: Callable[[], Courier],
    header: Callable[[], str],
    low_s: float,
    high_s: float,
) -> None:
    def busy(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(503)
        handler.send_header("retry-after", header())
        handler.send_header("content-length", "0")
        handler.end_headers()

    add_endpoint(installation.jobs.database, receiver(busy).url)
    send_due()
    cancelled(installation)
    wait_until(lambda: list_endpoints(installation.jobs.database)[0].answer == "HTTP 503", "refused")
    [row] = deliveries(installation)
    assert low_s <= row.due_at - time.time() <= high_s


def test_a_redirect_is_not_followed(
    installation: Installation, receiver: MakeReceiver, send_due: Callable[[], Courier]
) -> None:
    target = receiver()

    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(307)
        handler.send_header("location", target.url)
        handler.send_header("content-length", "0")
        handler.end_headers()

    add_endpoint(installation.jobs.database, receiver(redirect).url)
    send_due()
    cancelled(installation)
    answer = "HTTP 307 (redirects are not followed)"
    wait_until(lambda: list_endpoints(installation.jobs.database)[0].answer == answer, "redirected")
    assert states(installation) == ["waiting"] and target.received == []


def test_nothing_goes_through_a_proxy_and_no_cookies_or_passwords_are_sent(
    installation: Installation,
    receiver: MakeReceiver,
    send_due: Callable[[], Courier],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = receiver()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url)
    netrc = installation.settings.home / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))

    def bake(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("set-cookie", "a=b; path=/")
        handler.send_header("content-length", "0")
        handler.end_headers()

    hook = receiver(bake)
    add_endpoint(installation.jobs.database, hook.url)
    send_due()
    for _ in range(2):
        cancelled(installation)
    wait_until(lambda: states(installation) == ["delivered"] * 2, "delivered")
    sent = {name for headers, _ in hook.received for name in headers}
    assert proxy.received == [] and not sent & {"cookie", "authorization", "proxy-authorization"}


def test_an_answer_without_end_is_read_no_further_than_its_beginning(receiver: MakeReceiver) -> None:
    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            for _ in range(10**9):
                handler.wfile.write(b"x" * 1024)
        except OSError:
            hung_up.append(True)

    hung_up: list[bool] = []
    answer = asyncio.run(send(receiver(flood).url, new_secret(), "evt_1", b"{}"))
    assert (answer.status, answer.text) == (200, "x" * 4096)
    wait_until(lambda: hung_up == [True], "the connection is closed")


def test_the_status_counts_where_the_rest_of_an_answer_does_not_come(
    receiver: MakeReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "TIMEOUT_S", 1.0)

    def stall(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"tak")
        hook.hold(handler)

    hook = receiver(stall)
    assert asyncio.run(send(hook.url, new_secret(), "evt_1", b"{}")).is_good


def test_receivers_that_do_not_answer_hold_up_no_other(
    installation: Installation,
    receiver: MakeReceiver,
    send_due: Callable[[], Courier],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One is silent, one sends its headers a byte at a time, and nobody listens where a third was."""
    monkeypatch.setattr(sender, "TIMEOUT_S", 3.0)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        while not silent.released.wait(0.1):
            try:
                handler.wfile.write(b"H")
                handler.wfile.flush()
            except OSError:
                return

    silent, good = receiver(), receiver()
    silent.answers = [silent.hold]
    dead = receiver()
    dead.close()
    database = installation.jobs.database
    silent_id, dripping_id, dead_id, good_id = (
        add_endpoint(database, each.url)[1].id for each in (silent, receiver(drip), dead, good)
    )
    send_due()
    for _ in range(3):
        cancelled(installation)
    wait_until(lambda: len(good.received) == 3, "the good one has its events")
    answers = {endpoint.id: endpoint.answer for endpoint in list_endpoints(database)}
    assert answers[silent_id] is None and answers[dripping_id] is None  # still waited for
    assert len(silent.received) == 1  # one at a time

    def faults() -> dict[str, str | None]:
        return {endpoint.id: endpoint.answer for endpoint in list_endpoints(database)}

    wait_until(lambda: None not in faults().values(), "the others time out")
    found = faults()
    assert found[good_id] == "HTTP 204" and str(found[dead_id]).startswith("ConnectError")
    assert found[dripping_id] == found[silent_id] == "no answer within 3 s"


# At least once, and by one at a time ----------------------------------------------------------------------------


def test_of_many_couriers_one_sends_each_delivery(
    installation: Installation, receiver: MakeReceiver, send_due: Callable[[], Courier]
) -> None:
    hooks = [receiver() for _ in range(3)]
    for hook in hooks:
        add_endpoint(installation.jobs.database, hook.url)
    for _ in range(8):
        cancelled(installation)
    for _ in range(3):
        send_due()
    wait_until(lambda: states(installation) == ["delivered"] * 24, "delivered")
    assert [len(hook.received) for hook in hooks] == [8, 8, 8]
    assert all(sorted(hook.ids()) == sorted(hooks[0].ids()) and len(set(hook.ids())) == 8 for hook in hooks)


def test_of_many_claims_at_once_one_wins_and_a_late_answer_is_not_taken(installation: Installation) -> None:
    add_endpoint(installation.jobs.database, "https://example.com")
    cancelled(installation)
    claims = at_once(*(lambda: claim_due(Jobs(installation.settings).database, (), 9) for _ in range(8)))
    [first] = [delivery for claim in claims for delivery in claim]
    assert claim_due(installation.jobs.database, (), 9) == []
    change(installation, due_at=0)  # a minute later
    [second] = claim_due(installation.jobs.database, (), 9)
    assert (second.event_id, second.tries) == (first.event_id, 2)
    take_answer(installation.jobs.database, first, Answer(500))
    assert deliveries(installation)[0].due_at > time.time() + 30  # as the second claim left it
    take_answer(installation.jobs.database, second, Answer(200))
    assert states(installation) == ["delivered"]
    assert "whsec_" not in repr(second) and "example.com" not in repr(second)


KILLED_AFTER_THE_COMMIT = """
import os, signal, sys
from continual.queue.jobs import Jobs
from everlearn.settings import load_settings
Jobs(load_settings()).cancel(sys.argv[1])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_event_survives_the_death_of_who_ends_the_job_and_of_who_sends_it(
    installation: Installation, receiver: MakeReceiver
) -> None:
    """By real workers; one that is being sent, to a silent receiver, holds up no job. Their logs hold no secret."""
    hook = receiver()
    hook.answers = [hook.hold, 204]
    secret, endpoint = add_endpoint(installation.jobs.database, f"{hook.url}?token=receivers-own")
    job = installation.create()
    environment = os.environ | installation.settings.environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AFTER_THE_COMMIT, job.id], env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert (installation.jobs.get(job.id).state, states(installation)) == ("cancelled", ["waiting"])

    worker = installation.start_worker()
    wait_until(lambda: len(hook.received) == 1, "a worker sends it", 60, installation)
    worker.kill()
    worker.wait()
    [row] = deliveries(installation)
    assert (row.state, row.tries) == ("waiting", 1) and 30 < row.due_at - time.time() < 61
    change(installation, due_at=0)
    worker = installation.start_worker()
    wait_until(lambda: states(installation) == ["delivered"], "the next worker sends it", 60, installation)
    assert len(set(hook.ids())) == 1 and unwrap(secret, hook.received[1]).data.id == job.id

    hook.answers = [hook.hold]
    first, second = installation.create(), installation.create()
    assert [installation.wait(each).state for each in (first, second)] == ["succeeded"] * 2
    wait_until(lambda: len(hook.received) == 3, "the third is sent", 60, installation)
    worker.terminate()
    assert worker.wait(30) == 0
    assert "webhook delivered" in installation.log() and endpoint.id in installation.log()
    key = secret.removeprefix("whsec_")
    assert not any(word in installation.log() for word in ("whsec_", key, "receivers-own"))


def test_an_endpoint_that_is_gone_is_told_nothing_more(
    installation: Installation, receiver: MakeReceiver, send_due: Callable[[], Courier]
) -> None:
    gone, other = receiver(410), receiver()
    _, endpoint = add_endpoint(installation.jobs.database, gone.url)
    add_endpoint(installation.jobs.database, other.url)
    first, second = (cancelled(installation) for _ in range(2))
    send_due()
    wait_until(lambda: sorted(states(installation)) == ["delivered"] * 2 + ["failed"] * 2, "given up")
    third = cancelled(installation)
    wait_until(lambda: len(other.received) == 3, "the other hears of all")
    assert len(gone.received) == 1 and len(deliveries(installation)) == 5
    said = f"Webhook {endpoint.id} was not told that the job was cancelled: it is gone (HTTP 410)"
    told = [said in installation.messages(job) for job in (first, second, third)]
    assert told == [True, True, False]
    disabled = {each.id: each.disabled_at for each in list_endpoints(installation.jobs.database)}
    assert disabled.pop(endpoint.id) and list(disabled.values()) == [None]


@pytest.mark.parametrize("killed", [False, True])
def test_after_the_last_try_it_is_given_up_and_the_jobs_events_say_so(
    installation: Installation, receiver: MakeReceiver, send_due: Callable[[], Courier], killed: bool
) -> None:
    """Also where the worker was killed at the last try."""
    hook = receiver(500)
    _, endpoint = add_endpoint(installation.jobs.database, hook.url)
    id = succeed(installation)
    change(installation, tries=MAX_TRIES if killed else MAX_TRIES - 1)
    send_due()
    wait_until(lambda: states(installation) == ["failed"], "given up")
    assert len(hook.received) == (0 if killed else 1)
    event = installation.jobs.events(id)[-1]
    assert (event.level, event.data) == ("warn", {"endpoint": endpoint.id})
    assert (
        event.message
        == f"Webhook {endpoint.id} was not told that the job succeeded: it took none of 10 tries"
    )


def test_a_removed_endpoint_takes_what_it_was_to_be_told_with_it(installation: Installation) -> None:
    database = installation.jobs.database
    _, endpoint = add_endpoint(database, "https://example.com")
    cancelled(installation)
    [delivery] = claim_due(database, (), 1)
    remove_endpoint(database, endpoint.id)
    take_answer(database, delivery, Answer(200))
    assert list_endpoints(database) == deliveries(installation) == []


def test_old_deliveries_are_swept_and_those_that_wait_stay(installation: Installation) -> None:
    add_endpoint(installation.jobs.database, "https://example.com")
    for answer in (Answer(200), Answer(500)):
        cancelled(installation)
        [delivery] = claim_due(installation.jobs.database, (), 1)
        take_answer(installation.jobs.database, delivery, answer)
    sweep_deliveries(installation.jobs.database, time.time() - 60)
    assert sorted(states(installation)) == ["delivered", "waiting"]
    sweep_deliveries(installation.jobs.database, time.time() + 60)
    assert states(installation) == ["waiting"]

"""`everlearn webhooks`: on the database itself, with a real receiver."""

import json
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler

import pytest
from openai import OpenAI
from typer.testing import Result

from everlearn.registry.audit import list_acts
from everlearn.registry.keys import create_key
from tests.continual.queue.conftest import Installation
from tests.support.webhook_receiver import Receiver


@pytest.fixture
def run(command: Callable[..., Result]) -> Callable[..., Result]:
    return partial(command, "webhooks")


def test_an_endpoint_is_added_listed_and_removed_and_its_secret_is_shown_once(
    run: Callable[..., Result], installation: Installation
) -> None:
    _, key = create_key(installation.jobs.database, "trainer", train=True)
    url = "https://example.com/hook?token=abc"
    added = run("add", url, "--key", "trainer", "--events", "failed,cancelled")
    assert added.exit_code == 0, added.output
    secret = added.stdout.strip()
    assert secret.startswith("whsec_") and "warning" not in added.stderr
    [listed] = json.loads(run("ls", "--json").stdout)
    id = listed["id"]
    assert id in added.stderr and secret not in added.stderr
    assert (listed["url"], listed["key_id"]) == (url, key.id)
    assert listed["events"] == ["fine_tuning.job.failed", "fine_tuning.job.cancelled"]
    shown = run("ls").stdout
    assert all(word in shown for word in (id, url, key.id, "failed, cancelled"))
    assert "whsec_" not in shown + json.dumps(listed)
    assert run("rm", id).stdout.strip() == f"removed {id} ({url})"
    assert json.loads(run("ls", "--json").stdout) == []
    again = run("rm", id)
    assert again.exit_code == 1 and f"there is no webhook '{id}'" in again.stderr
    acts = list_acts(installation.jobs.database, 2)
    assert [(act.act, act.subject) for act in acts] == [("webhook.remove", id), ("webhook.add", id)]
    assert acts[1].detail["host"] == "example.com" and acts[1].detail["key"] == key.id
    assert not any(word in str(act.detail) for act in acts for word in (secret, "whsec_", "abc"))


def test_a_wrong_url_is_refused_and_an_open_one_is_warned_of(run: Callable[..., Result]) -> None:
    wrong = run("add", "example.com/hook")
    assert wrong.exit_code == 2 and "right is, for example, https://" in wrong.stderr
    opened = run("add", "http://example.com/hook", "--json")
    assert opened.exit_code == 0 and "use https" in opened.stderr
    assert json.loads(opened.stdout)["secret"].startswith("whsec_")
    assert run("add", "https://example.com", "--key", "nobody").exit_code == 1
    assert run("add", "https://example.com", "--events", "sucess").exit_code == 2


def test_a_test_event_is_signed_and_what_comes_back_is_told(
    run: Callable[..., Result], receiver: Callable[..., Receiver]
) -> None:
    def refuse(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(400)
        handler.end_headers()
        handler.wfile.write(b"no such \x1b[31mhook")

    hook = receiver(202, refuse)
    secret = run("add", hook.url).stdout.strip()
    [endpoint] = json.loads(run("ls", "--json").stdout)
    good = run("test", endpoint["id"])
    assert good.exit_code == 0 and good.stdout.startswith("HTTP 202: the event evt_")
    headers, body = hook.received[0]
    event = OpenAI(api_key="none").webhooks.unwrap(body, headers, secret=secret)
    assert str(event.type) == "webhook.test"
    bad = run("test", endpoint["id"])
    assert bad.exit_code == 1 and "HTTP 400; right is any 2xx" in bad.stderr
    assert "no such  [31mhook" in bad.stderr
    hook.close()
    dead = run("test", endpoint["id"], "--json")
    assert dead.exit_code == 1 and json.loads(dead.stdout)["answer"].startswith("ConnectError")
    assert secret not in good.output + bad.output + dead.output
    assert run("test", "hook-nope").exit_code == 1

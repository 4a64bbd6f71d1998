"""Two keys at one gateway: on every route that names a thing, the other's is as if it were not there."""

import dataclasses
import json
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest

from everlearn.registry.keys import create_key
from everlearn.registry.registry import Registry
from everlearn.registry.tables import ApiKey
from serve.gateway.http.exchange import Exchange
from serve.replicas import ReadyReplica
from tests.continual.queue.conftest import add_model
from tests.serve.gateway.conftest import RunningGateway, chat_body, wait_until

EXAMPLE = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}\n' * 10
REQUEST = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": chat_body()}
PLACES = {"file": "file-0", "batch": "batch_0", "job": "ftjob-0"}
"""The words by which a path's placeholder is known, and an id that nobody has."""


class Tenant:
    """A key, and what it has made."""

    def __init__(self, gateway: RunningGateway, name: str) -> None:
        self.gateway = gateway
        self.secret, _ = create_key(gateway.db, name, train=True)
        self.own: dict[str, str] = {}

    def ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        headers = {"authorization": f"Bearer {self.secret}"}
        return self.gateway.client.request(method, path, headers=headers, **options)

    def upload(self, purpose: str, data: bytes) -> str:
        files = {"file": ("a.jsonl", data), "purpose": (None, purpose)}
        return self.ask("POST", "/v1/files", files=files).json()["id"]

    def make(self) -> "Tenant":
        """A file, a job and a batch; nobody works on them here."""
        examples, requests = (
            self.upload("fine-tune", EXAMPLE),
            self.upload("batch", json.dumps(REQUEST).encode()),
        )
        job = {"model": "m", "training_file": examples}
        batch = {"input_file_id": requests, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        self.own = {
            "file": examples,
            "batch": self.ask("POST", "/v1/batches", json=batch).json()["id"],
            "job": self.ask("POST", "/v1/fine_tuning/jobs", json=job).json()["id"],
        }
        return self


@pytest.fixture(scope="module")
def gateway(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    gateway = start_gateway()
    create_key(gateway.db, "first")
    add_model(Registry(gateway.settings), "m")
    gateway.add_engine("m")
    wait_until(lambda: gateway.chat().status_code == 401, "the key is noticed")
    return gateway


def named(gateway: RunningGateway) -> list[tuple[str, str, str]]:
    """(method, path, kind) of every documented route that names a file, a batch or a job."""
    paths = gateway.client.get("/openapi.json").json()["paths"]
    found = []
    for path, operations in paths.items():
        for kind in PLACES:
            if re.search(rf"\{{[a-z_]*{kind}[a-z_]*\}}", path):
                found += [(method.upper(), path, kind) for method in operations]
    return found


def test_every_route_answers_of_anothers_thing_as_of_none(gateway: RunningGateway) -> None:
    owner, stranger = Tenant(gateway, "owner").make(), Tenant(gateway, "stranger")
    before = {kind: owner.ask("GET", path) for kind, path in listings().items()}
    routes = named(gateway)
    assert {kind for _, _, kind in routes} == set(PLACES) and len(routes) >= 9
    for method, path, kind in routes:
        theirs, none = (
            stranger.ask(method, re.sub(r"\{.*?\}", id, path)) for id in (owner.own[kind], PLACES[kind])
        )
        assert (theirs.status_code, none.status_code) == (404, 404), (method, path)
        assert theirs.text.replace(owner.own[kind], "") == none.text.replace(PLACES[kind], ""), path
    for kind, path in listings().items():
        assert stranger.ask("GET", path).json()["data"] == []
        after = stranger.ask("GET", path, params={"after": owner.own[kind]})
        assert after.status_code in (400, 404) or after.json()["data"] == []
        assert owner.ask("GET", path).json() == before[kind].json(), "nothing was changed"


def test_what_another_has_uploaded_cannot_be_worked_on(gateway: RunningGateway) -> None:
    owner, stranger = Tenant(gateway, "owner-2").make(), Tenant(gateway, "stranger-2")
    job = {"model": "m", "training_file": owner.own["file"]}
    batch = {
        "input_file_id": owner.own["file"],
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    for path, body in (("/v1/fine_tuning/jobs", job), ("/v1/batches", batch)):
        refused = stranger.ask("POST", path, json=body)
        assert refused.status_code in (400, 404) and owner.own["file"] in refused.text
        unknown = stranger.ask(
            "POST", path, json=json.loads(json.dumps(body).replace(owner.own["file"], "file-0"))
        )
        assert refused.text.replace(owner.own["file"], "") == unknown.text.replace("file-0", "")


def test_the_console_is_for_administrators(gateway: RunningGateway) -> None:
    tenant = Tenant(gateway, "tenant")
    paths = gateway.client.get("/openapi.json").json()["paths"]
    asked = [(method, path) for path in paths if path.startswith("/console/") for method in paths[path]]
    for method, path in asked or [("get", "/console/state")]:
        assert tenant.ask(method.upper(), re.sub(r"\{.*?\}", "x", path), json={}).status_code == 403, path


def listings() -> dict[str, str]:
    return {"file": "/v1/files", "batch": "/v1/batches", "job": "/v1/fine_tuning/jobs"}


def test_engines_are_told_whose_a_request_is_and_no_client_says_so_itself(gateway: RunningGateway) -> None:
    first, second = Tenant(gateway, "salt-one"), Tenant(gateway, "salt-two")
    engine = gateway.engines["m-1"]

    def salt(tenant: Tenant) -> str:
        headers = {"authorization": f"Bearer {tenant.secret}", "x-everlearn-salt": "another's"}
        answer = gateway.client.post("/v1/chat/completions", headers=headers, json=chat_body())
        assert answer.status_code == 200, answer.text
        return engine.received[-1].headers["x-everlearn-salt"]

    assert salt(first) == salt(first)
    assert len({salt(first), salt(second), "another's", ""}) == 4
    refused = first.ask("POST", "/v1/chat/completions", json=chat_body() | {"cache_salt": "another's"})
    assert refused.status_code == 400 and "cache_salt" in refused.text


def test_another_server_learns_nothing_of_keys() -> None:
    """Whose a request is, its engine is told; a server elsewhere is not."""
    row = ReadyReplica(
        id="r", model="m", version=1, digest="", kind="remote", task="generate", url="", pid=None, context=None,
        started_at=0.0,
    )  # fmt: skip
    exchange = Exchange("req_1", key=ApiKey(id="key-1"), replica=cast(Any, SimpleNamespace(row=row)))
    assert exchange.engine_headers() == {"x-request-id": "req_1"}
    exchange.replica = cast(Any, SimpleNamespace(row=dataclasses.replace(row, kind="onnx")))
    assert exchange.engine_headers()["x-everlearn-salt"] == "key-1"

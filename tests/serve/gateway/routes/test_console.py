"""What is behind the console: who may see it, that it is bounded, and that each act is written down."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx2
import pytest
from sqlalchemy import insert

from everlearn.registry.audit import list_acts
from everlearn.registry.database import write
from everlearn.registry.keys import create_key
from everlearn.registry.tables import AliasRow, BatchRow, JobRow, ModelRow, ReplicaRow, VersionRow
from serve.gateway.pages.overview import MAX_BATCHES, MAX_JOBS, MAX_VERSIONS
from tests.serve.gateway.conftest import RunningGateway, chat_body, wait_until
from tests.support.serve.scripted_engine import Connection, well


@pytest.fixture(scope="module")
def locked(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """A gateway with an administrator's key, a plain one, a model `m` of two versions and an engine."""
    gateway = start_gateway(remotes='[{"model": "far", "url": "http://127.0.0.1:9"}]')
    gateway.unlocked = look(gateway), look(gateway, host="elsewhere.example")
    gateway.admin, gateway.own = create_key(gateway.db, "admin", models=["other"], admin=True)
    gateway.plain, gateway.plain_key = create_key(gateway.db, "plain")
    with write(gateway.db) as connection:
        connection.execute(insert(ModelRow).values(name="m", last_version=2))
        for version in (1, 2):
            connection.execute(insert(VersionRow).values(row(version)))
        connection.execute(insert(AliasRow).values(model="m", alias="champion", version=1))
    gateway.add_engine("m")
    wait_until(lambda: gateway.chat().status_code == 401, "the keys are noticed")
    return gateway


def row(version: int, **changes: Any) -> dict[str, Any]:
    """A version whose files are said, and not there."""
    digest = hashlib.sha256(str(version).encode()).hexdigest()
    bundle = {
        "schema_version": 1, "name": "m", "format": "onnx-genai", "task": "generate", "architecture": "a",
        "parameters": 7, "files": {"model.onnx": {"sha256": digest, "size_bytes": 1000 + version}}, "digest": digest,
        "recipe": {"export": {"to": "int4-onnx"}}, "created_at": 1.0,
    }  # fmt: skip
    values = {"model": "m", "version": version, "digest": digest, "format": "onnx-genai", "task": "generate"}
    return values | {"bundle": bundle, "parent_digest": None, "created_at": float(version)} | changes


def look(gateway: RunningGateway, secret: str | None = None, **headers: str) -> httpx2.Response:
    if secret:
        headers["authorization"] = f"Bearer {secret}"
    return gateway.client.get("/console/state", headers=headers)


def act(gateway: RunningGateway, act: str, subject: str, secret: str | None = None) -> httpx2.Response:
    headers = {"authorization": f"Bearer {secret or gateway.admin}"}
    return gateway.client.post("/console/acts", json={"act": act, "subject": subject}, headers=headers)


def engine(gateway: RunningGateway) -> dict[str, Any]:
    """The one of model `m`."""
    return look(gateway, gateway.admin).json()["engines"]["rows"][0]


def test_it_asks_for_an_administrators_key(locked: RunningGateway) -> None:
    assert look(locked).status_code == look(locked, "el-wrong").status_code == 401
    refused = look(locked, locked.plain)
    assert refused.status_code == 403
    assert "keys create NAME --admin" in refused.json()["error"]["message"]
    assert look(locked, locked.admin).status_code == 200


def test_without_any_key_it_is_open_to_this_machine_alone(locked: RunningGateway) -> None:
    here, elsewhere = locked.unlocked
    assert here.json()["you"] is None and elsewhere.status_code == 403


def test_it_tells_no_secret(locked: RunningGateway) -> None:
    state = look(locked, locked.admin)
    assert locked.own.prefix in state.text
    for secret in (locked.admin, locked.plain):
        assert secret not in state.text
        assert hashlib.sha256(secret.encode()).hexdigest() not in state.text
    assert {"hash", "request", "training_file"}.isdisjoint(
        name for table in ("keys", "engines", "jobs") for each in state.json()[table]["rows"] for name in each
    )


def test_it_tells_what_runs_and_what_was_counted(locked: RunningGateway) -> None:
    headers = {"authorization": f"Bearer {locked.plain}"}
    seen = threading.Event()

    async def once_seen(connection: Connection) -> None:
        while not seen.is_set():
            await asyncio.sleep(0.01)
        await well(connection)

    locked.engines["m-1"].script = once_seen
    with ThreadPoolExecutor(1) as threads:
        post = partial(locked.client.post, json=chat_body(stream=True), headers=headers)
        answer = threads.submit(post, "/v1/chat/completions")
        wait_until(lambda: engine(locked)["in_flight"] == 1, "the request is seen")
        before = look(locked, locked.admin).json()["traffic"]
        seen.set()
        assert answer.result().status_code == 200
    assert before["in_flight"] == 1 and before["waiting"] == {"m": 1}
    state = look(locked, locked.admin).json()
    assert engine(locked)["in_flight"] == 0 and engine(locked)["state"] == "ready"
    after = state["traffic"]
    for name, more in (("tokens", {"prompt": 7, "completion": 3}), ("requests", {"200": 1})):
        was = before[name].get("m", {})
        assert after[name]["m"] == was | {label: was.get(label, 0) + count for label, count in more.items()}
    assert after["first_token"]["m"][-1][0] == "+Inf" and after["first_token"]["m"][-1][1] >= 1
    assert "/console/state" not in str(after)
    [newest, _] = sorted(state["versions"]["rows"], key=lambda version: -version["version"])
    assert (newest["size_bytes"], newest["parameters"], newest["recipe"]) == (1002, 7, "export int4-onnx")
    assert locked.log().count('"route":"/console/state"') == 0


def test_another_servers_model_is_told_with_why_it_is_away(locked: RunningGateway) -> None:
    def far() -> dict[str, Any]:
        return look(locked, locked.admin).json()["engines"]["rows"][-1]

    wait_until(lambda: far()["error"] == "ClientConnectorError", "the other server was tried")
    told = {name: far()[name] for name in ("model", "version", "kind", "state", "in_flight", "url")}
    assert told == {
        "model": "far", "version": None, "kind": "remote", "state": "away", "in_flight": None,
        "url": "http://127.0.0.1:9",
    }  # fmt: skip


def test_each_act_is_done_and_written_down_with_its_key(locked: RunningGateway) -> None:
    with write(locked.db) as connection:
        connection.execute(insert(JobRow).values(job("ftjob-1", "queued")))
    _, doomed = create_key(locked.db, "doomed")
    assert act(locked, "promote", "m@2").status_code == 200
    assert act(locked, "revoke", doomed.id).status_code == 200
    for wanted, becomes in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
        assert act(locked, wanted, "ftjob-1").status_code == 200
        assert look(locked, locked.admin).json()["jobs"]["rows"][0]["state"] == becomes
    state = look(locked, locked.admin).json()
    assert {each["alias"]: each["version"] for each in state["aliases"]} == {"champion": 2, "previous": 1}
    assert next(key for key in state["keys"]["rows"] if key["id"] == doomed.id)["state"] == "revoked"
    told = [(each.act, each.subject, each.actor) for each in list_acts(locked.db, 5)]
    assert told == [
        ("job.cancel", "ftjob-1", locked.own.id),
        ("job.resume", "ftjob-1", locked.own.id),
        ("job.pause", "ftjob-1", locked.own.id),
        ("key.revoke", doomed.id, locked.own.id),
        ("promote", "m@2", locked.own.id),
    ]
    assert [each["act"] for each in state["acts"][:3]] == ["job.cancel", "job.resume", "job.pause"]


def test_what_may_not_be_done_changes_nothing(locked: RunningGateway) -> None:
    before = len(list_acts(locked.db, 1000))
    assert act(locked, "promote", "m@1", secret=locked.plain).status_code == 403
    assert act(locked, "revoke", locked.own.id).status_code == 409
    assert act(locked, "promote", "m@77").status_code == 404
    assert act(locked, "cancel", "ftjob-none").status_code == 404
    assert act(locked, "delete", "m@1").status_code == 400
    assert act(locked, "revoke", "x" * 1000).status_code == 400
    headers = {"authorization": f"Bearer {locked.admin}", "content-type": "text/plain"}
    body = b'{"act": "promote", "subject": "m@1"}'
    assert locked.client.post("/console/acts", content=body, headers=headers).status_code == 415
    assert len(list_acts(locked.db, 1000)) == before
    assert look(locked, locked.admin).status_code == 200


def test_it_stays_bounded_and_never_leaves_out_a_champion(locked: RunningGateway) -> None:
    now = time.time()
    with write(locked.db) as connection:
        connection.execute(insert(VersionRow), [row(number) for number in range(3, MAX_VERSIONS + 50)])
        connection.execute(
            insert(JobRow), [job(f"ftjob-m{number}", "failed") for number in range(MAX_JOBS + 5)]
        )
        batch = {"endpoint": "e", "input_file": "f", "labels": {}, "state": "failed", "expires_at": now}
        connection.execute(
            insert(BatchRow), [batch | {"id": f"batch_{number}"} for number in range(MAX_BATCHES + 5)]
        )
        connection.execute(insert(ReplicaRow).values(replica("r-long", error="x" * 100_000)))
    state = look(locked, locked.admin).json()
    for table, bound in (("versions", MAX_VERSIONS), ("jobs", MAX_JOBS), ("batches", MAX_BATCHES)):
        assert len(state[table]["rows"]) == bound < state[table]["total"]
    shown = {each["version"] for each in state["versions"]["rows"]}
    assert {1, 2, MAX_VERSIONS + 49} <= shown, "champion and previous are the oldest, and still here"
    assert len(look(locked, locked.admin).content) < 200_000


def job(id: str, state: str) -> dict[str, Any]:
    values = {"id": id, "model": "m", "state": state, "recipe": {"domain": "law"}, "training_file": "file-1"}
    return values | {"seed": 1, "request": {}, "progress": {}}


def replica(id: str, **changes: Any) -> dict[str, Any]:
    values = {"id": id, "model": "m", "version": 1, "digest": "0" * 64, "kind": "onnx", "task": "generate"}
    return values | {"url": "", "state": "failed"} | changes

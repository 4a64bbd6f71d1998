"""Who may do what: every route of the application, asked with every kind of key, answers as this table says."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from everlearn.registry.keys import create_key, revoke_key
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from serve.gateway.app import create_app
from tests.continual.queue.conftest import add_model
from tests.serve.gateway.conftest import RunningGateway, chat_body, wait_until
from tests.support.serve.scripted_engine import Connection, well

INVALID = ("none", "unknown", "revoked", "expired")
VALID = ("plain", "narrow", "trainer", "admin")
REFUSED: dict[str, dict[str, int]] = {
    "anybody": {},
    "any key": dict.fromkeys(INVALID, 401),
    "a key for the model": dict.fromkeys(INVALID, 401) | {"narrow": 403},
    "a key that may train the model": dict.fromkeys(INVALID, 401) | {"narrow": 403, "plain": 403},
    "a key that may train": dict.fromkeys(INVALID, 401) | {"plain": 403},
    "an administrator": dict.fromkeys(INVALID, 401) | {"narrow": 403, "plain": 403, "trainer": 403},
}
"""Which kinds of key are turned away, and how; ``narrow`` may train, but another model."""

RIGHTS = {
    "POST /v1/chat/completions": "a key for the model",
    "POST /v1/completions": "a key for the model",
    "POST /v1/responses": "a key for the model",
    "POST /v1/embeddings": "a key for the model",
    "POST /classify": "a key for the model",
    "POST /pooling": "a key for the model",
    "POST /score": "a key for the model",
    "POST /v1/score": "a key for the model",
    "POST /rerank": "a key for the model",
    "POST /v1/rerank": "a key for the model",
    "POST /v2/rerank": "a key for the model",
    "POST /models/{model:path}": "a key for the model",
    "POST /v1/messages": "a key for the model",
    "POST /v1/messages/count_tokens": "a key for the model",
    "POST /tokenize": "a key for the model",
    "POST /detokenize": "a key for the model",
    "GET /v1/models": "any key",
    "GET /v1/models/{model:path}": "any key",
    "DELETE /v1/models/{model:path}": "a key that may train",
    "POST /v1/files": "any key",
    "GET /v1/files": "any key",
    "GET /v1/files/{file_id}": "any key",
    "DELETE /v1/files/{file_id}": "any key",
    "GET /v1/files/{file_id}/content": "any key",
    "POST /v1/batches": "any key",
    "GET /v1/batches": "any key",
    "GET /v1/batches/{batch_id}": "any key",
    "POST /v1/batches/{batch_id}/cancel": "any key",
    "POST /v1/fine_tuning/jobs": "a key that may train the model",
    "GET /v1/fine_tuning/jobs": "any key",
    "GET /v1/fine_tuning/jobs/{job_id}": "any key",
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": "any key",
    "POST /v1/fine_tuning/jobs/{job_id}/pause": "any key",
    "POST /v1/fine_tuning/jobs/{job_id}/resume": "any key",
    "GET /v1/fine_tuning/jobs/{job_id}/events": "any key",
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": "any key",
    "GET /console/state": "an administrator",
    "POST /console/acts": "an administrator",
    "GET /v1/updates/{path:path}": "anybody",
    "GET /health": "anybody",
    "GET /ready": "anybody",
    "GET /metrics": "anybody",
    "GET /": "anybody",
    "GET /console": "anybody",
    "GET /docs": "anybody",
    "GET /openapi.json": "anybody",
    "GET /console_elements.js": "anybody",
    **{f"GET /playground_{part}.js": "anybody" for part in ("answer", "api", "images", "tasks", "text")},
    **{
        f"GET /{page}.{kind}": "anybody"
        for page in ("playground", "console", "docs")
        for kind in ("css", "js")
    },
}
"""Of things with an owner each key sees its own alone: `test_tenants`. On other addresses /metrics needs a key."""

TEXT = {"model": "m", "prompt": "x"}
BODIES: dict[str, Any] = {
    "/v1/chat/completions": chat_body(),
    "/v1/completions": TEXT,
    "/v1/responses": {"model": "m", "input": "x"},
    "/v1/embeddings": {"model": "m", "input": "x"},
    "/classify": {"model": "m", "input": "x"},
    "/pooling": {"model": "m", "input": "x"},
    "/score": {"model": "m", "text_1": "x", "text_2": "y"},
    "/v1/score": {"model": "m", "text_1": "x", "text_2": "y"},
    "/rerank": {"model": "m", "query": "x", "documents": ["y"]},
    "/v1/rerank": {"model": "m", "query": "x", "documents": ["y"]},
    "/v2/rerank": {"model": "m", "query": "x", "documents": ["y"]},
    "/models/m": {"inputs": "x"},
    "/v1/messages": chat_body(max_tokens=1),
    "/v1/messages/count_tokens": chat_body(),
    "/tokenize": TEXT,
    "/detokenize": {"model": "m", "tokens": [1]},
    "/v1/batches": {"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"},
    "/v1/fine_tuning/jobs": {"model": "m", "training_file": "f"},
    "/console/acts": {"act": "cancel", "subject": "nothing"},
}


async def counting(connection: Connection) -> None:
    """A good engine, which also counts."""
    if "tokenize" in connection.request.path:
        await connection.json({"count": 1, "max_model_len": 9, "tokens": [1], "prompt": "x"})
    else:
        await well(connection)


@pytest.fixture(scope="module")
def gateway(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    gateway = start_gateway(first_token_timeout_s=5)
    create_key(gateway.db, "first")
    add_model(Registry(gateway.settings), "m")
    gateway.add_engine("m").script = counting
    wait_until(lambda: gateway.chat().status_code == 401, "the key is noticed")
    return gateway


@pytest.fixture(scope="module")
def keys(gateway: RunningGateway) -> dict[str, str | None]:
    """A secret of each kind."""
    db = gateway.db
    revoked, key = create_key(db, "revoked", admin=True)
    revoke_key(db, key.id)
    expired, _ = create_key(db, "expired", admin=True, expires_at=time.time() + 0.1)
    time.sleep(0.15)
    return {
        "none": None,
        "unknown": "el-unknown",
        "revoked": revoked,
        "expired": expired,
        "plain": create_key(db, "plain")[0],
        "narrow": create_key(db, "narrow", models=["other"], train=True)[0],
        "trainer": create_key(db, "trainer", models=["m"], train=True)[0],
        "admin": create_key(db, "admin", admin=True)[0],
    }


def routes(home: Path) -> list[str]:
    """Of the application itself, documented or not."""
    app = create_app(Settings(home=home))
    return [
        f"{method} {route.path}"  # type: ignore[attr-defined]
        for route in app.routes
        for method in route.methods - {"HEAD"}  # type: ignore[attr-defined]
    ]


def test_every_route_is_in_the_table_and_no_other(tmp_path: Path) -> None:
    assert sorted(routes(tmp_path)) == sorted(RIGHTS)


@pytest.mark.parametrize("kind", INVALID + VALID)
def test_every_route_answers_each_kind_of_key_as_the_table_says(
    gateway: RunningGateway, keys: dict[str, str | None], kind: str
) -> None:
    secret = keys[kind]
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    for route, who in RIGHTS.items():
        method, _, template = route.partition(" ")
        path = re.sub(r"\{.*?\}", "m" if template.startswith("/models/") else "nothing", template)
        if path == "/v1/files" and method == "POST":
            body: dict[str, Any] = {"files": {"file": ("a.jsonl", b"{}"), "purpose": (None, "batch")}}
        else:
            body = {"json": BODIES.get(path, {})} if method == "POST" else {}
        answer = gateway.client.request(method, path, headers=headers, **body)
        expected = REFUSED[who].get(kind)
        told = f"{route} with {kind}: {answer.status_code} {answer.text[:200]}"
        if expected:
            assert answer.status_code == expected, told
        else:
            assert answer.status_code not in (401, 403) and answer.status_code < 500, told
        if method == "GET" and expected:
            assert gateway.client.head(path, headers=headers).status_code == expected, told


FORGED = (
    {"x-forwarded-for": "9.9.9.9"},
    {"x-real-ip": "9.9.9.9"},
    {"forwarded": "for=9.9.9.9"},
    {"x-forwarded-for": "10.0.0.1, 10.0.0.2", "x-forwarded-host": "localhost"},
    {"cf-connecting-ip": "9.9.9.9", "true-client-ip": "9.9.9.9"},
)


def test_a_tenant_is_counted_as_one_whatever_it_forges_and_however_often_its_key_is_rotated(
    gateway: RunningGateway,
) -> None:
    secret, key = create_key(gateway.db, "tenant", requests_per_minute=4)
    other, _ = create_key(gateway.db, "neighbour", requests_per_minute=4)

    def ask(secret: str, **headers: str) -> int:
        answer: httpx2.Response = gateway.client.post(
            "/v1/chat/completions",
            json=chat_body(user="x"),
            headers={"authorization": f"Bearer {secret}"} | headers,
        )
        return answer.status_code

    mine = {"file": ("a.jsonl", b"{}"), "purpose": (None, "batch")}
    uploaded = gateway.client.post(
        "/v1/files", files=mine, headers={"authorization": f"Bearer {secret}"}
    ).json()
    assert [ask(secret, **forged) for forged in FORGED] == [200, 200, 200, 429, 429]
    spelt = (
        {"authorization": f"bearer  {secret}"},
        {"x-api-key": secret},
        {"authorization": f"Bearer {secret}", "x-api-key": secret, "openai-organization": "another"},
    )
    for headers in spelt:
        answer = gateway.client.post("/v1/chat/completions", json=chat_body(), headers=headers)
        assert answer.status_code == 429, headers
    for number in range(3):
        new = rotated(gateway, "tenant")
        assert ask(f"el-guessed-{number}") == 401
        wait_until(lambda old=secret: ask(old) == 401, "the former secret opens nothing", 3)
        assert ask(new) == 429
        secret = new
    listed = gateway.client.get("/v1/files", headers={"authorization": f"Bearer {secret}"}).json()
    assert [file["id"] for file in listed["data"]] == [uploaded["id"]]
    assert ask(other) == 200, "a neighbour is not counted with it"
    revoke_key(gateway.db, key.id)
    assert "not valid any more" in rotated(gateway, key.id)


def rotated(gateway: RunningGateway, name: str) -> str:
    """The new secret, or what is said instead, at the command line."""
    environment = os.environ | {"EVERLEARN_HOME": str(gateway.settings.home)}
    done = subprocess.run(
        [sys.executable, "-m", "everlearn", "keys", "rotate", name],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return (done.stdout or done.stderr).strip()

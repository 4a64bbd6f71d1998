"""Keys: required, scoped, limited, revoked, and never told to anyone."""

import asyncio
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AuthenticationError, OpenAI, PermissionDeniedError, RateLimitError
from sqlalchemy import event, text
from starlette.requests import Request

from everlearn.errors import AuthError
from everlearn.registry.database import open_database
from everlearn.registry.keys import create_key, revoke_key
from everlearn.settings import Settings
from serve.gateway.limits.auth import Authenticator
from tests.serve.gateway.conftest import RunningGateway, chat_body, wait_until
from tests.support.serve.scripted_engine import Connection, ScriptedEngine, chat_chunk

PROMPT = "the-prompt-nobody-may-log"


@pytest.fixture(scope="module")
def locked(start_gateway: Callable[..., RunningGateway]) -> RunningGateway:
    """A gateway with one key from the start, and models m and other."""
    gateway = start_gateway()
    gateway.secret, _ = create_key(gateway.db, "main")
    gateway.add_engine("m")
    gateway.add_engine("other")
    wait_until(lambda: gateway.chat().status_code == 401, "the key is noticed")
    return gateway


def ask(gateway: RunningGateway, secret: str, model: str = "m", **fields: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {secret}"}
    return gateway.client.post(
        "/v1/chat/completions", json=chat_body(model, PROMPT, **fields), headers=headers
    )


def routes(gateway: RunningGateway) -> list[tuple[str, str]]:
    """Every documented route that needs a key."""
    paths = gateway.client.get("/openapi.json").json()["paths"]
    return [
        (method.upper(), path.replace("{model}", "m"))
        for path, operations in paths.items()
        for method in operations
        if operations[method].get("security")
    ]


BAD_HEADERS = {
    "none": [],
    "empty": [("authorization", "")],
    "no scheme": [("authorization", "el-abc")],
    "basic": [("authorization", "Basic YTpi")],
    "unknown": [("authorization", "Bearer el-unknown")],
    "sql": [("authorization", "Bearer ' OR '1'='1' --")],
    "long": [("authorization", "Bearer " + "x" * 20_000)],
    "bytes": [("authorization", b"Bearer \xff\xfe")],
    "twice": [("authorization", "Bearer a"), ("authorization", "Bearer b")],
}


FOR_DEVICES = "/v1/updates/{path}"
"""What devices fetch without a secret: signed files of a folder that the settings name, and none by default."""


@pytest.mark.parametrize("headers", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_every_route_refuses_without_a_valid_key(locked: RunningGateway, headers: list) -> None:
    assert len(routes(locked)) >= 6
    for method, path in routes(locked):
        if path == FOR_DEVICES:
            continue
        response = locked.client.request(method, path, headers=headers, json={} if method == "POST" else None)
        assert response.status_code == 401, (method, path)
        error = response.json()["error"]
        assert error.get("code") == "invalid_api_key" or error["type"] == "authentication_error", path
        assert not any(word in response.text.lower() for word in ("sql", "select", "sqlite"))


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/"])
def test_what_tells_nothing_is_open_on_loopback(locked: RunningGateway, path: str) -> None:
    assert locked.client.get(path).status_code == 200


def test_unknown_revoked_and_expired_keys_are_answered_alike(locked: RunningGateway) -> None:
    revoked, key = create_key(locked.db, "revoked")
    revoke_key(locked.db, key.id)
    expired, _ = create_key(locked.db, "expired", expires_at=time.time() + 0.2)
    time.sleep(0.3)
    answers = [ask(locked, secret) for secret in ("el-unknown", revoked, expired)]
    assert {(a.status_code, a.text) for a in answers} == {(401, answers[0].text)}


def test_a_revoked_key_is_refused_after_the_cache_time(locked: RunningGateway) -> None:
    secret, key = create_key(locked.db, "brief")
    assert ask(locked, secret).status_code == 200
    revoke_key(locked.db, key.id)
    time.sleep(0.15)
    assert ask(locked, secret).status_code == 401


def test_a_key_opens_only_its_models_and_learns_nothing_of_others(locked: RunningGateway) -> None:
    secret, _ = create_key(locked.db, "scoped", models=["m"])
    assert ask(locked, secret).status_code == 200
    assert ask(locked, secret, "m@1").status_code == 200
    other, unknown = ask(locked, secret, "other"), ask(locked, secret, "unknown")
    assert (other.status_code, other.text) == (unknown.status_code, unknown.text) == (403, other.text)
    headers = {"authorization": f"Bearer {secret}"}
    listed = locked.client.get("/v1/models", headers=headers).json()["data"]
    assert [model["id"] for model in listed] == ["m"]
    assert locked.client.get("/v1/models/other", headers=headers).status_code == 404


def test_a_keys_limits_are_counted_shown_and_kept(locked: RunningGateway) -> None:
    secret, _ = create_key(locked.db, "limited", requests_per_minute=2, tokens_per_minute=1000)
    first = ask(locked, secret)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    second = ask(locked, secret)
    assert 985 <= int(second.headers["x-ratelimit-remaining-tokens"]) <= 991
    third = ask(locked, secret, user="someone-else")
    assert third.status_code == 429
    assert third.json()["error"]["type"] == "rate_limit_error"
    assert 25 <= int(third.headers["retry-after"]) <= 31
    forged = {"authorization": f"Bearer {secret}", "x-forwarded-for": "9.9.9.9"}
    assert locked.client.post("/v1/chat/completions", json=chat_body(), headers=forged).status_code == 429
    assert ask(locked, locked.secret).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_the_tokens_of_an_answer_are_charged_to_its_key(locked: RunningGateway, stream: bool) -> None:
    secret, _ = create_key(locked.db, "tokens", tokens_per_minute=5)
    assert ask(locked, secret, stream=stream).status_code == 200
    assert ask(locked, secret, stream=stream).status_code == 429


def test_a_broken_stream_is_charged_for_what_was_sent(locked: RunningGateway) -> None:
    async def die(connection: Connection) -> None:
        await connection.head()
        for _ in range(5):
            await connection.event(chat_chunk({"content": "x"}))
        connection.reset()

    engine: ScriptedEngine = locked.engines["other-1"]
    engine.script = die
    secret, _ = create_key(locked.db, "broken", tokens_per_minute=5)
    assert ask(locked, secret, "other", stream=True).status_code == 200
    assert ask(locked, secret, "m").status_code == 429


def test_the_openai_client_raises_its_own_errors(locked: RunningGateway) -> None:
    def client(secret: str) -> OpenAI:
        return OpenAI(base_url=f"{locked.url}/v1", api_key=secret, max_retries=0)

    def create(secret: str, model: str = "m") -> None:
        client(secret).chat.completions.create(model=model, messages=[{"role": "user", "content": PROMPT}])

    with pytest.raises(AuthenticationError):
        create("el-wrong")
    scoped, _ = create_key(locked.db, "narrow", models=["m"], requests_per_minute=1)
    with pytest.raises(PermissionDeniedError):
        create(scoped, "other")
    create(scoped)
    with pytest.raises(RateLimitError):
        create(scoped)


def test_the_first_key_closes_an_open_door(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    gateway.add_engine("m")
    assert gateway.chat().status_code == 200
    secret, _ = create_key(gateway.db, "first")
    wait_until(lambda: gateway.chat().status_code == 401, "the key is required", 3)
    assert ask(gateway, secret).status_code == 200


@pytest.mark.parametrize("end", ["revoked", "expired", "deleted"])
def test_the_end_of_the_last_key_opens_nothing(
    start_gateway: Callable[..., RunningGateway], end: str
) -> None:
    gateway = start_gateway()
    gateway.add_engine("m")
    secret, key = create_key(gateway.db, "last", expires_at=time.time() + 1 if end == "expired" else None)
    wait_until(lambda: gateway.chat().status_code == 401, "the key is required", 3)
    if end == "revoked":
        revoke_key(gateway.db, key.id)
    elif end == "deleted":
        with gateway.db.begin() as connection:
            connection.execute(text("DELETE FROM api_keys"))
    wait_until(lambda: ask(gateway, secret).status_code == 401, "the key has ended", 5)
    time.sleep(0.5)  # the gateway has looked several times since
    again = RunningGateway(gateway.settings.home)
    try:
        for door in (gateway, again):
            act = {"act": "promote", "subject": "m@1"}
            assert door.chat().status_code == 401
            assert door.client.post("/console/acts", json=act).status_code == 401
            assert door.client.get("/console/state").status_code == 401
            assert door.client.get("/v1/files").status_code == 401
    finally:
        again.stop()


def test_the_owner_comes_back_in_by_the_command_line(start_gateway: Callable[..., RunningGateway]) -> None:
    gateway = start_gateway()
    gateway.add_engine("m")
    command_line(gateway, "keys", "create", "first")
    wait_until(lambda: gateway.chat().status_code == 401, "the key is required", 3)
    assert "keys create NAME" in command_line(gateway, "keys", "revoke", "first")
    secret = command_line(gateway, "keys", "create", "second").split()[0]
    wait_until(lambda: ask(gateway, secret).status_code == 200, "the new key works", 3)
    assert "revoke second first" in command_line(gateway, "keys", "open")
    command_line(gateway, "keys", "revoke", "second")
    assert gateway.chat().status_code == 401
    command_line(gateway, "keys", "open")
    wait_until(lambda: gateway.chat().status_code == 200, "the door was opened", 3)


def command_line(gateway: RunningGateway, *arguments: str) -> str:
    """What `everlearn` prints in the gateway's home."""
    environment = os.environ | {"EVERLEARN_HOME": str(gateway.settings.home)}
    done = subprocess.run(
        [sys.executable, "-m", "everlearn", *arguments], env=environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_while_the_database_fails_cached_keys_work_and_others_get_503(
    start_gateway: Callable[..., RunningGateway],
) -> None:
    gateway = start_gateway(keys_cache_ttl_s=3)
    secret, _ = create_key(gateway.db, "cached")
    gateway.add_engine("m")
    wait_until(lambda: gateway.chat().status_code == 401, "the key is required")
    assert ask(gateway, secret).status_code == 200
    with gateway.db.begin() as connection:
        connection.execute(text("ALTER TABLE api_keys RENAME TO gone"))
    assert ask(gateway, secret).status_code == 200
    assert ask(gateway, "el-other").status_code == 503
    wait_until(lambda: ask(gateway, secret).status_code == 503, "the cache expires", 5)
    with gateway.db.begin() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO api_keys"))
    assert ask(gateway, secret).status_code == 200


def test_unknown_known_and_similar_keys_take_the_same_way(tmp_path: Path) -> None:
    """One look-up by the hash alone, in the same words, whether or not the key exists; then the cache, for all alike."""
    db = open_database(Settings(home=tmp_path))
    secret, _ = create_key(db, "known")
    revoked, key = create_key(db, "revoked")
    revoke_key(db, key.id)
    similar = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    asked: list[tuple[str, object, str]] = []

    @event.listens_for(db, "before_cursor_execute")
    def _(connection: object, cursor: object, statement: str, parameters: object, *_: object) -> None:
        asked.append((statement, parameters, threading.current_thread().name.rstrip("_0123456789")))

    keeper = Authenticator(db, Settings(home=tmp_path).serve)

    async def run() -> None:
        ways = []
        for sent in (secret, similar, revoked, "el-" + "x" * 43):
            for already_known in (False, True):
                asked.clear()
                request = Request(
                    {"type": "http", "headers": [(b"authorization", f"Bearer {sent}".encode())]}
                )
                try:
                    assert await keeper.admit(request) and sent == secret
                except AuthError:
                    assert sent != secret
                if already_known:
                    assert asked == []
                    continue
                (begin, _, _), (statement, parameters, thread) = asked
                assert begin == "BEGIN"
                assert parameters == (hashlib.sha256(sent.encode()).hexdigest(),)
                ways.append((statement, thread))
        assert set(ways) == {(ways[0][0], "keys")} and "WHERE api_keys.hash = ?" in ways[0][0]

    asyncio.run(run())


def test_neither_secrets_nor_prompts_nor_answers_are_logged(locked: RunningGateway) -> None:
    ask(locked, locked.secret, user="user-nobody-may-log")
    ask(locked, "el-wrong-secret-nobody-may-log")
    log = locked.log()
    assert '"event":"request"' in log
    for word in (locked.secret, PROMPT, "nobody-may-log", "Paris", "Par"):
        assert word not in log


def test_it_refuses_to_start_on_an_open_address_without_a_key(tmp_path: Path) -> None:
    environment = os.environ | {"EVERLEARN_HOME": str(tmp_path), "EVERLEARN_SERVE__HOST": "0.0.0.0"}
    started = subprocess.run(
        [sys.executable, "-m", "serve.gateway"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert started.returncode == 2
    assert "everlearn keys create" in started.stderr


def test_on_an_open_address_metrics_need_a_key(
    start_gateway: Callable[..., RunningGateway], tmp_path: Path
) -> None:
    from everlearn.registry.database import open_database
    from everlearn.settings import Settings
    from serve.gateway.app import create_app

    settings = Settings(home=tmp_path)
    settings.serve.host = "0.0.0.0"
    secret, _ = create_key(open_database(settings), "k")
    app = create_app(settings)

    async def get(path: str, **headers: str) -> int:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://public.example") as client:
            return (await client.get(path, headers=headers)).status_code

    import asyncio

    assert asyncio.run(get("/metrics")) == 401
    assert asyncio.run(get("/metrics", authorization=f"Bearer {secret}")) == 200
    assert asyncio.run(get("/health")) == 200

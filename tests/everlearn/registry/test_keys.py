import time

import pytest
from alembic import command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, text

from everlearn.errors import Conflict, InvalidInput, NotFound
from everlearn.registry.database import open_database
from everlearn.registry.keys import (
    any_active_key,
    create_key,
    find_key,
    keys_required,
    list_keys,
    may_train,
    open_door,
    revoke_key,
)
from everlearn.registry.migrations import configuration
from everlearn.registry.registry import Registry
from everlearn.settings import Settings


def test_a_secret_finds_its_key_and_nothing_else_does(registry: Registry) -> None:
    db = registry.database
    secret, key = create_key(db, "ci", models=["tiny"], requests_per_minute=10, tokens_per_minute=1000)
    create_key(db, "other")
    found = find_key(db, secret)
    assert found and (found.id, found.models, found.requests_per_minute) == (key.id, ["tiny"], 10)
    assert secret.startswith("el-") and len(secret) == 46
    for wrong in ("", secret[:-1], secret + "x", secret.upper(), key.hash, key.id, "el-" + "x" * 10_000):
        assert find_key(db, wrong) is None


def test_the_secret_is_not_in_the_database(registry: Registry) -> None:
    secret, key = create_key(registry.database, "ci")
    with registry.database.connect() as connection:
        rows = str(connection.execute(text("SELECT * FROM api_keys")).all())
    assert secret not in rows and secret[len(key.prefix) :] not in rows


def test_a_revoked_and_an_expired_key_open_nothing(registry: Registry) -> None:
    db = registry.database
    assert not any_active_key(db)
    secret, key = create_key(db, "ci")
    brief, _ = create_key(db, "brief", expires_at=time.time() + 0.2)
    assert any_active_key(db) and find_key(db, brief)
    revoke_key(db, key.id)
    time.sleep(0.25)
    assert find_key(db, secret) is None and find_key(db, brief) is None
    assert not any_active_key(db)
    assert [one.name for one in list_keys(db)] == ["ci", "brief"]


def test_once_a_key_existed_a_key_is_needed_whatever_becomes_of_it(registry: Registry) -> None:
    db = registry.database
    assert not keys_required(db)
    _, brief = create_key(db, "brief", expires_at=time.time() + 0.1)
    time.sleep(0.15)
    assert keys_required(db) and not any_active_key(db)
    revoke_key(db, brief.id)
    assert keys_required(db)
    with db.begin() as connection:
        connection.execute(text("DELETE FROM api_keys"))
    assert keys_required(open_database(registry.settings))


def test_only_an_act_of_its_own_opens_the_door_again_and_only_without_valid_keys(registry: Registry) -> None:
    db = registry.database
    create_key(db, "ci")
    with pytest.raises(Conflict, match="revoke ci first"):
        open_door(db)
    revoke_key(db, "ci")
    open_door(db, actor="me@here")
    assert not keys_required(db)
    with db.connect() as connection:
        assert (
            connection.execute(text("SELECT actor FROM audit WHERE act = 'door.open'")).scalar() == "me@here"
        )
    create_key(db, "next")
    assert keys_required(db)


@pytest.mark.parametrize("left", ["an expired key", "a revoked key", "the audit of a deleted key", "nothing"])
def test_a_database_of_an_earlier_version_keeps_its_door_as_its_keys_say(
    settings: Settings, left: str
) -> None:
    db = _database_at(settings, "0005")
    row = {"an expired key": ("k", 1.0, None), "a revoked key": ("k", None, 1.0)}.get(left)
    with db.begin() as connection:
        if row:
            insert = (
                "INSERT INTO api_keys (id, name, hash, prefix, admin, created_at, expires_at, revoked_at)"
                " VALUES (:id, 'k', 'h', 'p', 0, 1.0, :expires_at, :revoked_at)"
            )
            connection.execute(text(insert), dict(zip(("id", "expires_at", "revoked_at"), row, strict=True)))
        elif left != "nothing":
            connection.execute(
                text(
                    "INSERT INTO audit (at, actor, act, subject, detail) VALUES (1, 'a', 'key.create', 'k', '{}')"
                )
            )
    assert keys_required(open_database(settings)) == (left != "nothing")


def test_keys_of_an_earlier_version_may_train_where_they_did_or_administer(settings: Settings) -> None:
    db = _database_at(settings, "0005")
    with db.begin() as connection:
        for name, admin in (("plain", 0), ("trained", 0), ("admin", 1)):
            connection.execute(
                text(
                    "INSERT INTO api_keys (id, name, hash, prefix, admin, created_at)"
                    f" VALUES ('{name}', '{name}', '{name}', 'p', {admin}, 1.0)"
                )
            )
        connection.execute(
            text(
                "INSERT INTO jobs (id, key_id, model, state, attempt, beats, fence, recipe, training_file, seed,"
                " request, progress, created_at)"
                " VALUES ('j', 'trained', 'm', 'queued', 0, 0, 0, '{}', 'f', 0, '{}', '{}', 1)"
            )
        )
    found = {key.name: may_train(key) for key in list_keys(open_database(settings))}
    assert found == {"plain": False, "trained": True, "admin": True}


def _database_at(settings: Settings, schema: str) -> Engine:
    """A database as an earlier version left it."""
    settings.directory("run")
    db = create_engine(settings.resolved_database_url())
    config = configuration()
    with db.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, schema)
    return db


def test_a_key_is_revoked_by_name_where_that_is_clear(registry: Registry) -> None:
    db = registry.database
    create_key(db, "ci")
    _, second = create_key(db, "ci")
    with pytest.raises(InvalidInput, match="2 keys are called 'ci'"):
        revoke_key(db, "ci")
    first_time = revoke_key(db, second.id).revoked_at
    assert revoke_key(db, second.id).revoked_at == first_time
    assert revoke_key(db, "ci").id != second.id
    with pytest.raises(NotFound):
        revoke_key(db, "ci")


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("", {}),
        ("x" * 65, {}),
        ("a\nb", {}),
        ("a", {"models": []}),
        ("a", {"requests_per_minute": 0}),
        ("a", {"tokens_per_minute": -5}),
        ("a", {"expires_at": 1.0}),
    ],
)
def test_a_wrong_field_is_refused_by_name(registry: Registry, name: str, limits: dict[str, object]) -> None:
    with pytest.raises(InvalidInput) as caught:
        create_key(registry.database, name, **limits)  # type: ignore[arg-type]
    assert caught.value.param in {"name", *limits}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text())
def test_no_text_is_a_key(registry: Registry, secret: str) -> None:
    assert find_key(registry.database, secret) is None

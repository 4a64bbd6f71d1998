import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from everlearn.errors import InvalidInput, NotFound
from everlearn.keys import any_active_key, create_key, find_key, list_keys, revoke_key
from everlearn.registry import Registry


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

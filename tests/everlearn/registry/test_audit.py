from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from everlearn.errors import Conflict, EverlearnError, NotFound
from everlearn.registry.audit import list_acts, local_user
from everlearn.registry.keys import create_key, revoke_key
from everlearn.registry.registry import Registry


def told(registry: Registry) -> list[tuple[str, str]]:
    return [(act.act, act.subject) for act in reversed(list_acts(registry.database))]


def test_every_act_has_one_row_with_its_actor(registry: Registry, add: Any) -> None:
    db = registry.database
    for bits in (4, 8, 16):
        add(registry, format="onnx", recipe={"bits": bits})
    _, key = create_key(db, "ci", models=["tiny"])
    registry.promote("tiny@2", actor=key.id)
    registry.rollback("tiny")
    registry.set_alias("tiny", "stable", 2)
    registry.remove_alias("tiny", "stable")
    registry.try_out("tiny@3", "shadow", 0.5)
    registry.end_trial("tiny", "shadow")
    registry.delete("tiny@3")
    for _ in range(2):
        revoke_key(db, key.id)
    assert told(registry) == [
        ("key.create", key.id),
        ("promote", "tiny@2"),
        ("rollback", "tiny@1"),
        ("alias.set", "tiny@stable"),
        ("alias.remove", "tiny@stable"),
        ("shadow.start", "tiny@3"),
        ("shadow.end", "tiny@3"),
        ("version.delete", "tiny@3"),
        ("key.revoke", key.id),
    ]
    promoted = list_acts(db)[7]
    assert promoted.actor == key.id and promoted.detail == {"former": 1}
    assert {act.actor for act in list_acts(db)} == {key.id, local_user()}


def test_an_act_that_fails_has_no_row(registry: Registry, add: Any) -> None:
    add(registry, format="onnx")
    with pytest.raises(Conflict):
        registry.delete("tiny@1")
    with pytest.raises(Conflict):
        registry.rollback("tiny")
    for act in (registry.promote, registry.delete, lambda name: revoke_key(registry.database, name)):
        with pytest.raises(NotFound):
            act("nobody")
    assert told(registry) == []


def test_an_act_whose_row_cannot_be_written_does_not_happen(registry: Registry, add: Any) -> None:
    for bits in (4, 8):
        add(registry, format="onnx", recipe={"bits": bits})
    with registry.database.begin() as connection:
        connection.execute(text("DROP TABLE audit"))
    for act in (
        lambda: registry.promote("tiny@2"),
        lambda: registry.delete("tiny@2"),
        lambda: create_key(registry.database, "ci"),
    ):
        with pytest.raises((EverlearnError, DBAPIError)):
            act()
    assert registry.aliases("tiny") == {"champion": 1} and len(registry.versions("tiny")) == 2
    with registry.database.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM api_keys")).scalar() == 0


def test_no_secret_is_in_the_audit_log(registry: Registry) -> None:
    secret, key = create_key(registry.database, "ci", tokens_per_minute=7)
    revoke_key(registry.database, "ci")
    rows = str(list_acts(registry.database))
    assert "tokens_per_minute" in rows
    for part in (secret, secret[3:], key.hash, key.prefix):
        assert part not in rows


def test_acts_are_listed_from_the_newest_page_by_page(registry: Registry) -> None:
    for name in "abc":
        create_key(registry.database, name)
    first = list_acts(registry.database, 2)
    rest = list_acts(registry.database, 2, before=first[-1].id)
    assert [act.detail["name"] for act in (*first, *rest)] == ["c", "b", "a"]

"""The first service: weak passwords are refused, and Prometheus always has a key that opens the metrics alone."""

import secrets
from pathlib import Path

import pytest

from deploy.containers.setup import PASSWORDS, check_passwords, keep_metrics_key
from everlearn.errors import ConfigError
from everlearn.registry.database import open_database
from everlearn.registry.keys import covers, find_key, list_keys, revoke_key
from everlearn.settings import Settings


def good() -> dict[str, str]:
    return {name: secrets.token_hex(24) for name in PASSWORDS}


def test_random_passwords_are_taken() -> None:
    for _ in range(500):
        check_passwords(good())


@pytest.mark.parametrize("name", PASSWORDS)
@pytest.mark.parametrize(
    ("password", "fault"),
    [
        ("", "is empty"),
        ("k3v9x", "has 5 characters of at least 20"),
        ("change-me-to-something-long", "is an example"),
        ("example-example-example-example", "is an example"),
        ("Passwordpasswordpassword", "is an example"),
        ("aaaaaaaaaaaaaaaaaaaaaaaaaaaa", "is an example"),
        ("kq3v9x/4t:8w@z1m5n7p2r6s0dkq", "part of a URL"),
        ("kq3v9x 4t 8w z1m5n7p2r6s0dkq", "part of a URL"),
    ],
)
def test_a_weak_password_is_refused_by_its_name_and_not_shown(name: str, password: str, fault: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_passwords(good() | {name: password})
    assert name in refused.value.message and fault in refused.value.message
    assert "openssl rand -hex 24" in refused.value.message
    assert not password or password not in refused.value.message


def test_one_password_in_two_places_is_refused() -> None:
    same = good()
    same["GRAFANA_PASSWORD"] = same["POSTGRES_PASSWORD"]
    with pytest.raises(ConfigError, match="GRAFANA_PASSWORD is the same as POSTGRES_PASSWORD"):
        check_passwords(same)


def test_the_key_for_metrics_is_kept_while_it_is_valid_and_made_again_when_not(
    settings: Settings, tmp_path: Path
) -> None:
    db, file = open_database(settings), tmp_path / "key"
    assert keep_metrics_key(db, file)
    first = file.read_text()
    key = find_key(db, first)
    assert key and not covers(key, "smollm2") and not key.admin and not key.train
    assert not keep_metrics_key(db, file) and file.read_text() == first
    revoke_key(db, key.id)
    assert keep_metrics_key(db, file) and find_key(db, file.read_text())
    file.unlink()
    assert keep_metrics_key(db, file)
    assert len([key for key in list_keys(db) if key.revoked_at is None]) == 1, (
        "whose secret is lost is closed"
    )
    assert file.stat().st_mode & 0o777 == 0o644

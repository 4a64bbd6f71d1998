"""`python -m deploy.containers.setup`: the first service of compose.yaml, which ends before the others start.

It refuses weak passwords, migrates the database, and keeps a key with which Prometheus reads the gateway's metrics.
It may run again at any time, and twice at once.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock
from sqlalchemy import Engine

from everlearn.bundles.durable import write_file
from everlearn.errors import ConfigError, EverlearnError
from everlearn.privacy import keep_private
from everlearn.registry.database import START_PATIENCE_S, open_database
from everlearn.registry.keys import create_key, find_key, list_keys, revoke_key
from everlearn.settings import load_settings

PASSWORDS = ("POSTGRES_PASSWORD", "VALKEY_PASSWORD", "GRAFANA_PASSWORD")
SHORTEST = 20
REMEDY = "set it in .env to the output of `openssl rand -hex 24`"
GUESSED = re.compile(r"change|example|passw|secret|everlearn|admin", re.IGNORECASE)
DIFFERENT = 8
"""Characters of a password, at least; of 48 random hexadecimal digits hardly ever fewer than 12 differ."""

KEY_NAME = "prometheus"
FOR_PROMETHEUS = 0o644
"""Of the key's file: Prometheus is another user, and nobody else has the volume."""
NO_MODEL = ["-"]
"""The models of the key: no model can have this name, so that it opens the metrics alone."""


def check_passwords(environment: Mapping[str, str]) -> None:
    """Raises ConfigError naming the first variable that is empty, short, guessable, used twice, or hard to quote."""
    seen: dict[str, str] = {}
    for name in PASSWORDS:
        password = environment.get(name, "")
        if not password:
            raise ConfigError(f"{name} is empty: {REMEDY}", param=name)
        if len(password) < SHORTEST:
            raise ConfigError(
                f"{name} has {len(password)} characters of at least {SHORTEST}: {REMEDY}", param=name
            )
        if not re.fullmatch(r"[A-Za-z0-9._~-]+", password):
            raise ConfigError(
                f"{name} may have letters, digits and ._~- alone, as it is part of a URL: {REMEDY}",
                param=name,
            )
        if GUESSED.search(password) or len(set(password)) < DIFFERENT:
            raise ConfigError(f"{name} is an example or can be guessed: {REMEDY}", param=name)
        if password in seen:
            raise ConfigError(f"{name} is the same as {seen[password]}: {REMEDY}", param=name)
        seen[password] = name


def keep_metrics_key(db: Engine, file: Path) -> bool:
    """Has ``file`` hold the secret of a valid key that opens the metrics alone; True where it had to be made anew."""
    secret = file.read_text().strip() if file.is_file() else ""
    if secret and find_key(db, secret):
        file.chmod(FOR_PROMETHEUS)
        return False
    for key in list_keys(db):
        if key.name == KEY_NAME and key.models == NO_MODEL and key.revoked_at is None:
            revoke_key(db, key.id)  # its secret is nowhere any more
    secret, _ = create_key(db, KEY_NAME, NO_MODEL)
    write_file(file, secret.encode())
    file.chmod(FOR_PROMETHEUS)
    return True


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m deploy.containers.setup", description=__doc__)
    parser.add_argument("--metrics-key", type=Path, required=True, help="where Prometheus reads its key")
    arguments = parser.parse_args()
    keep_private()
    try:
        check_passwords(os.environ)
        settings = load_settings()
        db = open_database(settings, START_PATIENCE_S)
        with FileLock(settings.directory("run") / "metrics-key.lock"):
            made = keep_metrics_key(db, arguments.metrics_key)
    except EverlearnError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    print(f"the database is up to date; the key for metrics {'was made' if made else 'is valid'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

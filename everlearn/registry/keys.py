"""API keys: random secrets, kept only as their sha256."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, delete, insert, or_, select
from sqlalchemy.orm import Session

from everlearn.errors import Conflict, InvalidInput, NotFound
from everlearn.registry.audit import record
from everlearn.registry.database import write
from everlearn.registry.tables import ApiKey, DoorRow

SECRET_BYTES = 32
MAX_SECRET_CHARS = 256
PREFIX_CHARS = 9


def create_key(
    db: Engine,
    name: str,
    models: list[str] | None = None,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    expires_at: float | None = None,
    admin: bool = False,
    tokens_per_month: int | None = None,
    *,
    requests_in_flight: int | None = None,
    train: bool = False,
    actor: str | None = None,
) -> tuple[str, ApiKey]:
    """A new key and its secret, which is shown this once and cannot be had again.

    ``models`` None covers every model. ``expires_at`` is seconds since 1970, UTC. An ``admin`` key opens the console
    and may do what a ``train`` key may: have models taught. ``requests_in_flight``: at once; None: the setting's.
    ``tokens_per_month``: a budget for each calendar month, UTC, of prompt and answer together.
    From the first key on, requests need one, whatever becomes of it. ``actor``: as :func:`everlearn.registry.audit.record` takes it.
    """
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "tokens_per_month": tokens_per_month,
        "requests_in_flight": requests_in_flight,
    }
    _check(name, models, limits, expires_at)
    secret = _new_secret()
    key = ApiKey(
        id="key-" + secrets.token_hex(6),
        name=name,
        hash=_hash(secret),
        prefix=secret[:PREFIX_CHARS],
        models=models,
        **limits,
        admin=admin,
        train=train,
        created_at=time.time(),
        expires_at=expires_at,
    )
    with write(db) as connection, Session(connection, expire_on_commit=False) as session:
        session.add(key)
        session.flush()
        session.expunge(key)
        _close_door(connection)
        record(
            connection, actor, "key.create", key.id, name=name, models=models, admin=admin, train=train,
            expires_at=expires_at, **limits,
        )  # fmt: skip
    return secret, key


def find_key(db: Engine, secret: str) -> ApiKey | None:
    """The active key of this secret: not revoked, not expired. The lookup is by hash alone."""
    if not secret or len(secret) > MAX_SECRET_CHARS:
        return None
    wanted = _hash(secret)
    with Session(db, expire_on_commit=False) as session:
        key = session.scalar(select(ApiKey).where(ApiKey.hash == wanted))
    if key is None or not hmac.compare_digest(key.hash, wanted):
        return None
    return key if is_active(key) else None


def is_active(key: ApiKey | Row[tuple[object, ...]]) -> bool:
    """Whether the key opens anything now."""
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > time.time())


def why_ended(connection: Connection, key_id: str | None) -> str | None:
    """Why what a key has begun must end, where the key opens nothing any more; None where it does, or none was asked for."""
    if key_id is None:
        return None
    with Session(connection) as session:
        key = session.get(ApiKey, key_id)
    if key is not None and is_active(key):
        return None
    how = "was deleted" if key is None else "was revoked" if key.revoked_at is not None else "has expired"
    return f"its API key is not valid any more: it {how}"


def may_train(key: ApiKey) -> bool:
    """Whether the key may have models taught, and so move their champions."""
    return key.train or key.admin


def covers(key: ApiKey, model: str) -> bool:
    """Whether the key may use ``model``, given as ``name`` or ``name@version``."""
    return key.models is None or model in key.models or model.partition("@")[0] in key.models


def keys_required(db: Engine) -> bool:
    """Whether requests must bring a key: from the first key on, also once none is valid any more."""
    with Session(db) as session:
        closed = session.scalar(select(DoorRow.id).limit(1)) is not None
    return closed or any_active_key(db)


def any_active_key(db: Engine) -> bool:
    """Whether there is a key that opens anything."""
    with Session(db) as session:
        return session.scalar(_active().limit(1)) is not None


def open_door(db: Engine, *, actor: str | None = None) -> None:
    """From now on requests from this machine need no key, until the next key is made.

    Raises Conflict while a key is valid: its limits would hold for nobody.
    """
    with write(db) as connection:
        if names := connection.scalars(_active(ApiKey.name).order_by(ApiKey.created_at)).all():
            raise Conflict(f"there are valid keys: revoke {', '.join(names)} first", param="key")
        connection.execute(delete(DoorRow))
        record(connection, actor, "door.open", "keys")


def _close_door(connection: Connection) -> None:
    if connection.scalar(select(DoorRow.id).limit(1)) is None:
        connection.execute(insert(DoorRow).values(id=1, closed_at=time.time()))


def _active(*columns: Any) -> Select[*tuple[Any, ...]]:
    unexpired = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > time.time())
    return select(*columns or (ApiKey.id,)).where(ApiKey.revoked_at.is_(None), unexpired)


def list_keys(db: Engine) -> list[ApiKey]:
    """Every key, revoked ones too, oldest first."""
    with Session(db, expire_on_commit=False) as session:
        return list(session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id)))


def revoke_key(db: Engine, identifier: str, *, actor: str | None = None) -> ApiKey:
    """Closes the key of this id, or of this name where one active key has it. Raises NotFound, InvalidInput."""
    with write(db) as connection, Session(connection, expire_on_commit=False) as session:
        key = require_key(session, identifier)
        if key.revoked_at is None:
            key.revoked_at = time.time()
            record(connection, actor, "key.revoke", key.id, name=key.name)
        session.flush()
        session.expunge(key)
    return key


def rotate_key(db: Engine, identifier: str, *, actor: str | None = None) -> tuple[str, ApiKey]:
    """Another secret for a key that stays the same: its limits, what it has used, its files, batches and jobs.

    The former secret opens nothing from now on. Raises NotFound, and InvalidInput for a key that is not valid any more.
    """
    secret = _new_secret()
    with write(db) as connection, Session(connection, expire_on_commit=False) as session:
        key = require_key(session, identifier)
        if not is_active(key):
            raise InvalidInput(
                f"{key.id} is not valid any more; `everlearn keys create` makes another", param="key"
            )
        key.hash, key.prefix = _hash(secret), secret[:PREFIX_CHARS]
        record(connection, actor, "key.rotate", key.id, name=key.name)
        session.flush()
        session.expunge(key)
    return secret, key


def require_key(session: Session, identifier: str) -> ApiKey:
    """The key of this id, or of this name where one active key has it. Raises NotFound, InvalidInput."""
    return session.get(ApiKey, identifier) or _by_name(session, identifier)


def _new_secret() -> str:
    return "el-" + secrets.token_urlsafe(SECRET_BYTES)


def _by_name(session: Session, name: str) -> ApiKey:
    found = session.scalars(select(ApiKey).where(ApiKey.name == name, ApiKey.revoked_at.is_(None))).all()
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(key.id for key in found)
        raise InvalidInput(f"{len(found)} keys are called {name!r}; say which by id: {ids}", param="key")
    raise NotFound(f"no key has the id or the name {name!r}; `everlearn keys ls` shows them", param="key")


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _check(
    name: str, models: list[str] | None, limits: dict[str, int | None], expires_at: float | None
) -> None:
    if not name.strip() or len(name) > 64 or not name.isprintable():
        raise InvalidInput(f"a key's name is 1 to 64 printable characters, not {name!r}", param="name")
    if models is not None and not models:
        raise InvalidInput(
            "a key for no model opens nothing; leave models out for all of them", param="models"
        )
    for model in models or ():
        if not model or not model.isprintable():
            raise InvalidInput(f"{model!r} is no model's name", param="models")
    for param, limit in limits.items():
        if limit is not None and limit < 1:
            raise InvalidInput(f"{param} is at least 1, not {limit}", param=param)
    if expires_at is not None and expires_at <= time.time():
        raise InvalidInput("expires_at lies in the past", param="expires_at")

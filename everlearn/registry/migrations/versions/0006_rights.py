"""A door that stays closed once a key existed, and keys that may have models taught."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

SECONDS: sa.Double[float] = sa.Double()


def upgrade() -> None:
    door = op.create_table(
        "door",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("closed_at", SECONDS, nullable=False),
    )
    ever = "SELECT 1 FROM api_keys UNION SELECT 1 FROM audit WHERE act = 'key.create'"
    if op.get_bind().scalar(sa.text(f"SELECT count(*) FROM ({ever}) AS ever")):
        op.bulk_insert(door, [{"id": 1, "closed_at": time.time()}])
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("requests_in_flight", sa.Integer(), nullable=True))
        keys.add_column(sa.Column("train", sa.Boolean(), nullable=False, server_default=sa.false()))
    taught = "admin OR id IN (SELECT key_id FROM jobs)"  # whoever had models taught so far still may
    op.execute(sa.text(f"UPDATE api_keys SET train = :yes WHERE {taught}").bindparams(yes=True))


def downgrade() -> None:
    with op.batch_alter_table("api_keys") as keys:
        keys.drop_column("train")
        keys.drop_column("requests_in_flight")
    op.drop_table("door")

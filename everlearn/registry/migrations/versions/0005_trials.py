"""Versions on trial: the share of a model's requests that goes to an alias, and the role of a running engine."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    with op.batch_alter_table("aliases") as aliases:
        aliases.add_column(sa.Column("share", sa.Double(), nullable=True))
    with op.batch_alter_table("replicas") as replicas:
        replicas.add_column(sa.Column("role", sa.String(16), nullable=False, server_default="champion"))


def downgrade() -> None:
    with op.batch_alter_table("replicas") as replicas:
        replicas.drop_column("role")
    with op.batch_alter_table("aliases") as aliases:
        aliases.drop_column("share")

"""Jobs can be paused, and leave a file of their figures."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

DOUBLE: sa.Double[float] = sa.Double()


def upgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("pause_requested_at", DOUBLE, nullable=True))
        jobs.add_column(sa.Column("result_file", sa.String(64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_column("result_file")
        jobs.drop_column("pause_requested_at")

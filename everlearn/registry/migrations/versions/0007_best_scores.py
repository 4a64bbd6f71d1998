"""What the gate remembers: each domain's best scores, and of which document a kept example is a part."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

DOUBLE: sa.Double[float] = sa.Double()


def upgrade() -> None:
    op.create_table(
        "best_scores",
        sa.Column("model", sa.String(64), primary_key=True),
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("sha256", sa.String(64), primary_key=True),
        sa.Column("domain", sa.String(64), nullable=False),
        sa.Column("version", sa.String(128), nullable=False),
        sa.Column("nll", DOUBLE, nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("at", DOUBLE, nullable=False),
    )
    with op.batch_alter_table("replay_examples") as examples:
        examples.add_column(sa.Column("document", sa.String(64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("replay_examples") as examples:
        examples.drop_column("document")
    op.drop_table("best_scores")

"""Add to deployments what they compute, and the pooling of an embedding model."""

import sqlalchemy as sa
from alembic import op

revision = "0029"
down_revision = "0028"


def upgrade() -> None:
    task = sa.Column("task", sa.String(length=32), nullable=False, server_default=sa.text("'generate'"))
    op.add_column("deployment", task)
    op.add_column("deployment", sa.Column("pooling", sa.String(length=32), nullable=True))


def downgrade() -> None:
    op.drop_column("deployment", "pooling")
    op.drop_column("deployment", "task")

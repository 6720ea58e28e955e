"""Add the number of runs that a worker can hold at once, by queue."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("worker", sa.Column("slots", Json, nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("worker", "slots")

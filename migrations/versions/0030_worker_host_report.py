"""Add the report of `python -m workers doctor` to workers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0030"
down_revision = "0029"

JSON = sa.JSON().with_variant(postgresql.JSONB(astext_type=sa.Text()), "postgresql")


def upgrade() -> None:
    op.add_column("worker", sa.Column("host_report", JSON, nullable=True))


def downgrade() -> None:
    op.drop_column("worker", "host_report")

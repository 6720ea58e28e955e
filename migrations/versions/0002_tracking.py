"""Add the tracking services of runs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    links = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    op.add_column("run", sa.Column("tracking", links, nullable=False, server_default="[]"))


def downgrade() -> None:
    op.drop_column("run", "tracking")

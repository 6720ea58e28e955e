"""Add the problems that a worker reports about itself."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("worker", sa.Column("problems", Json, nullable=False, server_default="[]"))


def downgrade() -> None:
    op.drop_column("worker", "problems")

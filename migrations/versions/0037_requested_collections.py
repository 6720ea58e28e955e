"""Add the last collection of garbage that a person has requested."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0037"
down_revision = "0036"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("storage_state", sa.Column("requested", Json, nullable=True))


def downgrade() -> None:
    op.drop_column("storage_state", "requested")

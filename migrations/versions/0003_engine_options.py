"""Add the engine options of deployments."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    options = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
    op.add_column("deployment", sa.Column("options", options, nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("deployment", "options")

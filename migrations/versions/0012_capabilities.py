"""Add the capabilities of workers, and the one that a run needs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("worker", sa.Column("capabilities", Json, nullable=False, server_default="[]"))
    op.add_column("run", sa.Column("capability", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("run", "capability")
    op.drop_column("worker", "capabilities")

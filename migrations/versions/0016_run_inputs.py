"""Store what the output of a run follows from, and the run whose output it has reused."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016"
down_revision = "0015"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("run", sa.Column("inputs", Json, nullable=True))
    op.add_column("run", sa.Column("fingerprint", sa.String(), nullable=True))
    op.add_column("run", sa.Column("reused_from", sa.String(), nullable=True))
    op.create_index("ix_run_fingerprint", "run", ["fingerprint", "id"])


def downgrade() -> None:
    op.drop_index("ix_run_fingerprint", "run")
    op.drop_column("run", "reused_from")
    op.drop_column("run", "fingerprint")
    op.drop_column("run", "inputs")

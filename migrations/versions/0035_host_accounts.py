"""Add the cloud account of each host, what keeps a host from its end, and machines that nobody claims."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0035"
down_revision = "0034"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
COLUMNS = {
    "host": ("account", "problem"),
    "cloud": ("account", "held_at", "listed_at", "gaps", "unclaimed"),
    "job_host": ("unoffered_at", "counted_from"),
}


def upgrade() -> None:
    op.add_column("host", sa.Column("account", sa.String(), nullable=True))
    op.add_column("host", sa.Column("problem", Json, nullable=True))
    op.add_column("cloud", sa.Column("account", sa.String(), nullable=True))
    op.add_column("cloud", sa.Column("held_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("cloud", sa.Column("listed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("cloud", sa.Column("gaps", Json, nullable=False, server_default="[]"))
    op.execute("UPDATE cloud SET listed_at = swept_at")
    op.add_column("cloud", sa.Column("unclaimed", Json, nullable=False, server_default="[]"))
    op.add_column("job_host", sa.Column("unoffered_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("job_host", sa.Column("counted_from", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    for table, columns in COLUMNS.items():
        for name in reversed(columns):
            op.drop_column(table, name)

"""Index the warnings among the events, which every view of a job shows."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

IS_WARNING = sa.text("type = 'warning'")


def upgrade() -> None:
    op.create_index(
        "ix_event_warning",
        "event",
        ["run_id", "seq"],
        sqlite_where=IS_WARNING,
        postgresql_where=IS_WARNING,
    )


def downgrade() -> None:
    op.drop_index("ix_event_warning", "event")

"""Rename columns to plain terms, and add the devices of a run as a column."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

RENAMED_COLUMNS = (
    ("run", "rung_at", "notified_at"),
    ("run", "faults", "failure_count"),
    ("deployment", "restarts", "restart_count"),
    ("alias", "moved_at", "updated_at"),
    ("alias_version", "restores", "restored_version"),
)


def upgrade() -> None:
    for table, old, new in RENAMED_COLUMNS:
        op.alter_column(table, old, new_column_name=new)
    op.add_column("run", sa.Column("device_count", sa.Integer(), nullable=False, server_default="1"))
    # Until now the query that claims runs read the number out of the config.
    run = sa.table("run", sa.column("device_count", sa.Integer()), sa.column("config", sa.JSON()))
    op.execute(run.update().values(device_count=sa.func.coalesce(run.c.config["devices"].as_integer(), 1)))


def downgrade() -> None:
    op.drop_column("run", "device_count")
    for table, old, new in RENAMED_COLUMNS:
        op.alter_column(table, new, new_column_name=old)

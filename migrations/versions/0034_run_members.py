"""Add the members of runs on several hosts, and the addresses at which workers reach each other."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0034"
down_revision = "0033"

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("run", sa.Column("nodes", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("worker", sa.Column("node_address", sa.String(), nullable=True))
    op.create_index(
        "ix_run_nodes",
        "run",
        ["status", "queue", "id"],
        sqlite_where=sa.text("nodes > 1"),
        postgresql_where=sa.text("nodes > 1"),
    )
    op.create_table(
        "run_member",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=False),
        sa.Column("node_rank", sa.Integer(), nullable=True),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("port", sa.Integer(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("is_stopping", sa.Boolean(), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", JSON, nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_run_member_run_id_run")),
        sa.PrimaryKeyConstraint("run_id", "attempt", "worker_id", name=op.f("pk_run_member")),
    )


def downgrade() -> None:
    op.drop_table("run_member")
    op.drop_index("ix_run_nodes", table_name="run")
    op.drop_column("worker", "node_address")
    op.drop_column("run", "nodes")

"""Add hosts in clouds, the state of clouds, and the hosts that jobs ask for."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0031"
down_revision = "0030"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
UNFINISHED = sa.text("job_id IS NOT NULL AND status NOT IN ('terminated', 'failed')")


def upgrade() -> None:
    _create_hosts()
    op.create_table(
        "cloud",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("worker_id", sa.String(), nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=False),
        _time("lease_expires_at"),
        _time("swept_at"),
        sa.Column("offers", Json, nullable=False),
        _time("offers_at"),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("orphan_count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_cloud")),
    )
    op.create_table(
        "job_host",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("cloud", sa.String(length=32), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("region", sa.String(), nullable=False),
        sa.Column("spot", sa.Boolean(), nullable=False),
        sa.Column("max_usd", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_job_host")),
    )
    op.add_column("worker", sa.Column("host_id", sa.String(), nullable=True))
    op.add_column("worker", sa.Column("job_id", sa.String(), nullable=True))
    op.create_index(op.f("ix_worker_host_id"), "worker", ["host_id"])
    own_host = sa.Column("own_host", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("run", own_host)


def downgrade() -> None:
    op.drop_column("run", "own_host")
    op.drop_index(op.f("ix_worker_host_id"), table_name="worker")
    op.drop_column("worker", "job_id")
    op.drop_column("worker", "host_id")
    op.drop_table("job_host")
    op.drop_table("cloud")
    op.drop_index("uq_host_job", table_name="host")
    op.drop_index("ix_host_status_cloud", table_name="host")
    op.drop_table("host")


def _create_hosts() -> None:
    op.create_table(
        "host",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("cloud", sa.String(length=32), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("region", sa.String(), nullable=False),
        sa.Column("spot", sa.Boolean(), nullable=False),
        sa.Column("gpu_name", sa.String(), nullable=True),
        sa.Column("gpu_count", sa.Integer(), nullable=False),
        sa.Column("usd_per_hour", sa.Float(), nullable=False),
        sa.Column("max_usd", sa.Float(), nullable=False),
        sa.Column("idle_seconds", sa.Float(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        _time("attempted_at"),
        _time("launch_at"),
        sa.Column("machine_id", sa.String(), nullable=True),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column("ssh_user", sa.String(), nullable=True),
        sa.Column("ssh_host_keys", Json, nullable=False),
        sa.Column("key_id", sa.String(), nullable=True),
        sa.Column("error", Json, nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        _time("launched_at"),
        _time("running_at"),
        _time("ready_at"),
        _time("last_busy_at"),
        _time("stop_at"),
        sa.Column("stop_reason", sa.String(length=32), nullable=True),
        sa.Column("terminate_failures", sa.Integer(), nullable=False),
        _time("overdue_at"),
        _time("ended_at"),
        sa.Column("spend_usd", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_host")),
    )
    op.create_index("ix_host_status_cloud", "host", ["status", "cloud"])
    op.create_index(
        "uq_host_job", "host", ["job_id"], unique=True, sqlite_where=UNFINISHED, postgresql_where=UNFINISHED
    )


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=True)

"""Add the disk space that a run needs after a full disk, and correct devices and configs of runs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"

MIN_DISK_BYTES = 64 << 20

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
run = sa.table(
    "run",
    sa.column("id", sa.String()),
    sa.column("stage", sa.String()),
    sa.column("status", sa.String()),
    sa.column("config", Json),
    sa.column("error", Json),
    sa.column("device_count", sa.Integer()),
    sa.column("needed_disk_bytes", sa.BigInteger()),
)


def upgrade() -> None:
    op.add_column("run", sa.Column("needed_disk_bytes", sa.BigInteger(), nullable=True))
    tensor_parallel = run.c.config["options"]["tensor_parallel"].as_integer()
    op.execute(sa.update(run).where(run.c.stage == "deploy").values(device_count=0))
    op.execute(
        sa.update(run)
        .where(run.c.stage == "generate")
        .values(device_count=sa.func.coalesce(tensor_parallel, 1))
    )
    connection = op.get_bind()
    # The field that held the command of the worker's engine; configs reject unknown fields.
    generating = sa.select(run.c.id, run.c.config).where(run.c.stage == "generate")
    for run_id, config in connection.execute(generating).all():
        config.pop("engine_program", None)
        connection.execute(sa.update(run).where(run.c.id == run_id).values(config=config))
    # A run that a full disk had stopped was `paused`, which now means a person's request only.
    paused = sa.select(run.c.id, run.c.error).where(run.c.status == "paused")
    for run_id, error in connection.execute(paused).all():
        if error and error["code"] == "disk_full":
            waiting = {"status": "queued", "needed_disk_bytes": MIN_DISK_BYTES}
            connection.execute(sa.update(run).where(run.c.id == run_id).values(**waiting))


def downgrade() -> None:
    op.drop_column("run", "needed_disk_bytes")

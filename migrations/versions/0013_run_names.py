"""Name runs by their job and stage, and index the lists of runs."""

import re

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

FILTERS = {"status": "status", "stage": "stage", "queue": "queue", "worker": "worker_id"}
MAX_JOB_CHARACTERS = 40

job = sa.table("job", sa.column("id", sa.String()), sa.column("name", sa.String()))
run = sa.table(
    "run",
    sa.column("id", sa.String()),
    sa.column("job_id", sa.String()),
    sa.column("name", sa.String()),
    sa.column("full_name", sa.String()),
)


def upgrade() -> None:
    op.add_column("run", sa.Column("full_name", sa.String(), nullable=False, server_default=""))
    connection = op.get_bind()
    # The name becomes part of a path, so only letters and digits of the job's name remain.
    named = sa.select(run.c.id, run.c.name, job.c.name).join(job, job.c.id == run.c.job_id)
    for run_id, stage, job_name in connection.execute(named).all():
        words = re.findall(r"[^\W_]+", job_name.lower())
        slug = "-".join(words)[:MAX_JOB_CHARACTERS].strip("-")
        full_name = f"{slug}-{stage}" if slug else stage
        connection.execute(sa.update(run).where(run.c.id == run_id).values(full_name=full_name))
    for name, column in FILTERS.items():
        op.create_index(f"ix_run_{name}_id", "run", [column, "id"])


def downgrade() -> None:
    for name in FILTERS:
        op.drop_index(f"ix_run_{name}_id", "run")
    op.drop_column("run", "full_name")

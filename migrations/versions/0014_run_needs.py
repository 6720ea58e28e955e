"""Store which runs a run needs; the runs of existing jobs need the one before them."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

run = sa.table(
    "run",
    sa.column("id", sa.String()),
    sa.column("job_id", sa.String()),
    sa.column("position", sa.Integer()),
    sa.column("status", sa.String()),
    sa.column("unmet_needs", sa.Integer()),
)
run_need = sa.table(
    "run_need",
    sa.column("run_id", sa.String()),
    sa.column("needed_id", sa.String()),
    sa.column("required_status", sa.String()),
)


def upgrade() -> None:
    op.add_column("run", sa.Column("handled", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("run", sa.Column("unmet_needs", sa.Integer(), nullable=False, server_default="0"))
    op.create_table(
        "run_need",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("needed_id", sa.String(), nullable=False),
        sa.Column("required_status", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_run_need_run_id_run"),
        sa.ForeignKeyConstraint(["needed_id"], ["run.id"], name="fk_run_need_needed_id_run"),
        sa.PrimaryKeyConstraint("run_id", "needed_id", name="pk_run_need"),
    )
    op.create_index("ix_run_need_needed_id", "run_need", ["needed_id"])
    before = run.alias()
    chain = sa.select(run.c.id, before.c.id, sa.literal("succeeded")).where(
        before.c.job_id == run.c.job_id, before.c.position == run.c.position - 1
    )
    connection = op.get_bind()
    connection.execute(
        sa.insert(run_need).from_select(["run_id", "needed_id", "required_status"], chain)
    )
    # An alias of the table in a subquery of its own UPDATE, on both databases.
    unmet = sa.select(before.c.id).where(
        before.c.job_id == run.c.job_id,
        before.c.position == run.c.position - 1,
        before.c.status != "succeeded",
    )
    connection.execute(sa.update(run).where(sa.exists(unmet)).values(unmet_needs=1))


def downgrade() -> None:
    op.drop_index("ix_run_need_needed_id", "run_need")
    op.drop_table("run_need")
    op.drop_column("run", "unmet_needs")
    op.drop_column("run", "handled")

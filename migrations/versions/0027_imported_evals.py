"""Keep evals and runs that were imported from OpenAI, and when an eval was changed."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0027"
down_revision = "0026"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("eval", sa.Column("updated_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE eval SET updated_at = created_at")
    with op.batch_alter_table("eval") as batch:
        batch.alter_column("updated_at", nullable=False)
        batch.add_column(sa.Column("imported_id", sa.String(), nullable=True))
        batch.add_column(sa.Column("imported_object", sa.Text(), nullable=True))
        batch.create_unique_constraint(op.f("uq_eval_imported_id"), ["imported_id"])
    with op.batch_alter_table("eval_run") as batch:
        batch.alter_column("job_id", nullable=True)
        batch.add_column(sa.Column("imported_id", sa.String(), nullable=True))
        batch.add_column(sa.Column("imported_status", sa.String(), nullable=True))
        batch.add_column(sa.Column("imported_results", Json, nullable=True))
        batch.add_column(sa.Column("imported_object", sa.Text(), nullable=True))
        batch.create_unique_constraint(op.f("uq_eval_run_imported_id"), ["imported_id"])
    op.create_table(
        "imported_eval_item",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("imported_id", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["eval_run.id"], name=op.f("fk_imported_eval_item_run_id_eval_run")
        ),
        sa.PrimaryKeyConstraint("run_id", "position", name=op.f("pk_imported_eval_item")),
        sa.UniqueConstraint("run_id", "imported_id", name=op.f("uq_imported_eval_item_run_id_imported_id")),
    )


def downgrade() -> None:
    op.drop_table("imported_eval_item")
    op.execute("DELETE FROM eval_run WHERE job_id IS NULL")
    with op.batch_alter_table("eval_run") as batch:
        batch.drop_constraint(op.f("uq_eval_run_imported_id"), type_="unique")
        for name in ("imported_object", "imported_results", "imported_status", "imported_id"):
            batch.drop_column(name)
        batch.alter_column("job_id", nullable=False)
    with op.batch_alter_table("eval") as batch:
        batch.drop_constraint(op.f("uq_eval_imported_id"), type_="unique")
        for name in ("imported_object", "imported_id", "updated_at"):
            batch.drop_column(name)

"""Store evals in OpenAI's terms, and their runs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0024"
down_revision = "0023"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "eval",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("data_source_config", Json, nullable=False),
        sa.Column("testing_criteria", Json, nullable=False),
        sa.Column("custom", Json, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_eval")),
    )
    op.create_table(
        "eval_run",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("eval_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("data_source", Json, nullable=False),
        sa.Column("testing_criteria", Json, nullable=False),
        sa.Column("custom", Json, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["eval_id"], ["eval.id"], name=op.f("fk_eval_run_eval_id_eval")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_eval_run_job_id_job")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_eval_run")),
    )
    op.create_index(op.f("ix_eval_run_eval_id"), "eval_run", ["eval_id"])
    op.create_index(op.f("ix_eval_run_job_id"), "eval_run", ["job_id"])


def downgrade() -> None:
    op.drop_table("eval_run")
    op.drop_table("eval")

"""Store fine-tuning jobs of clients of the OpenAI API, with their checkpoints and permissions."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0020"
down_revision = "0019"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
Time = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "fine_tuning_job",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("base", sa.String(), nullable=False),
        sa.Column("base_name", sa.String(), nullable=False),
        sa.Column("training_file", sa.String(), nullable=False),
        sa.Column("validation_file", sa.String(), nullable=True),
        sa.Column("suffix", sa.String(), nullable=True),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("method", Json, nullable=False),
        sa.Column("explanation", sa.String(), nullable=False),
        sa.Column("integrations", Json, nullable=False),
        sa.Column("client_metadata", Json, nullable=False),
        sa.Column("engine", Json, nullable=False),
        sa.Column("organization", sa.String(), nullable=False),
        sa.Column("fine_tuned_model", sa.String(), nullable=False),
        sa.Column("result_file_id", sa.String(), nullable=True),
        sa.Column("created_at", Time, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_fine_tuning_job_job_id_job")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fine_tuning_job")),
        sa.UniqueConstraint("job_id", name=op.f("uq_fine_tuning_job_job_id")),
        sa.UniqueConstraint("fine_tuned_model", name=op.f("uq_fine_tuning_job_fine_tuned_model")),
    )
    op.create_table(
        "fine_tuning_checkpoint",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("fine_tuning_job_id", sa.String(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("model_id", sa.String(), nullable=False),
        sa.Column("metrics", Json, nullable=False),
        sa.Column("created_at", Time, nullable=False),
        sa.ForeignKeyConstraint(
            ["fine_tuning_job_id"],
            ["fine_tuning_job.id"],
            name=op.f("fk_fine_tuning_checkpoint_fine_tuning_job_id_fine_tuning_job"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fine_tuning_checkpoint")),
        sa.UniqueConstraint("name", name=op.f("uq_fine_tuning_checkpoint_name")),
    )
    op.create_index(
        "ix_fine_tuning_checkpoint_fine_tuning_job_id", "fine_tuning_checkpoint", ["fine_tuning_job_id"]
    )
    op.create_table(
        "checkpoint_permission",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("model_name", sa.String(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("created_at", Time, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoint_permission")),
    )
    op.create_index("ix_checkpoint_permission_model_name", "checkpoint_permission", ["model_name"])


def downgrade() -> None:
    op.drop_table("checkpoint_permission")
    op.drop_table("fine_tuning_checkpoint")
    op.drop_table("fine_tuning_job")

"""Add rescues: models at OpenAI that are trained again here."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0028"
down_revision = "0027"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "rescue",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("fine_tuned_model", sa.String(), nullable=False),
        sa.Column("created_by", sa.String(), nullable=False),
        sa.Column("fetch_job_id", sa.String(), nullable=True),
        sa.Column("start", Json, nullable=True),
        sa.Column("files", Json, nullable=False),
        sa.Column("fine_tuning_job_id", sa.String(), nullable=True),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rescue")),
    )


def downgrade() -> None:
    op.drop_table("rescue")

"""Store chat completions and responses, of the deployments that have a retention time for them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0022"
down_revision = "0021"

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column(
        "deployment", sa.Column("store_days", sa.Float(), nullable=False, server_default=sa.text("0"))
    )
    op.create_table(
        "stored_completion",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("deployment_id", sa.String(), nullable=False),
        sa.Column("client_metadata", JSON, nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("completion", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stored_completion")),
    )
    op.create_index("ix_stored_completion_key_id_id", "stored_completion", ["key_id", "id"])
    op.create_index("ix_stored_completion_expires_at", "stored_completion", ["expires_at"])
    op.create_table(
        "stored_response",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("deployment_id", sa.String(), nullable=False),
        sa.Column("previous_response_id", sa.String(), nullable=True),
        sa.Column("input_items", sa.Text(), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stored_response")),
    )
    op.create_index("ix_stored_response_expires_at", "stored_response", ["expires_at"])


def downgrade() -> None:
    op.drop_table("stored_response")
    op.drop_table("stored_completion")
    op.drop_column("deployment", "store_days")

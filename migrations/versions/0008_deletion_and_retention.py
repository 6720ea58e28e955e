"""Add the marks of deleted datasets and models, of thinned runs, and the state of the artifact store."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
COLUMNS = (
    ("dataset", sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True)),
    ("model", sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True)),
    ("checkpoint", sa.Column("resumable", sa.Boolean(), nullable=False, server_default=sa.true())),
    ("run", sa.Column("thinned_at", sa.DateTime(timezone=True), nullable=True)),
)
INDEXES = (("ix_model_dataset_id", "dataset_id"), ("ix_model_parent_id", "parent_id"))


def upgrade() -> None:
    for table, column in COLUMNS:
        op.add_column(table, column)
    for name, column_name in INDEXES:
        op.create_index(name, "model", [column_name])
    op.create_table(
        "storage_state",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("installation_id", sa.String(), nullable=False),
        sa.Column("holder", sa.String(), nullable=True),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("collected_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("report", Json, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_storage_state")),
    )


def downgrade() -> None:
    op.drop_table("storage_state")
    for name, _ in INDEXES:
        op.drop_index(name, table_name="model")
    for table, column in reversed(COLUMNS):
        op.drop_column(table, column.name)

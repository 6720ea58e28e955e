"""Store files with a purpose, as clients of the OpenAI API upload and receive them."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.create_table(
        "file",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(length=32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("dataset_id", sa.String(), nullable=True),
        sa.Column("owns_dataset", sa.Boolean(), nullable=False),
        sa.Column("artifact", sa.String(), nullable=True),
        sa.Column("sha256", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.id"], name=op.f("fk_file_dataset_id_dataset")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_file")),
        sa.UniqueConstraint("artifact", name=op.f("uq_file_artifact")),
    )
    op.create_index("ix_file_purpose_id", "file", ["purpose", "id"])
    op.create_index("ix_file_dataset_id", "file", ["dataset_id"])


def downgrade() -> None:
    op.drop_table("file")

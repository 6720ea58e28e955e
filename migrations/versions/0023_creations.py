"""Add the records of creations, for clients that repeat a request."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"

Time = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "creation",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("caller", sa.String(), nullable=False),
        sa.Column("route", sa.String(), nullable=False),
        sa.Column("idempotency_key", sa.String(), nullable=True),
        sa.Column("body_sha256", sa.String(), nullable=False),
        sa.Column("retry_count", sa.Integer(), nullable=False),
        sa.Column("object_id", sa.String(), nullable=False),
        sa.Column("created_at", Time, nullable=False),
        sa.Column("held_until", Time, nullable=False),
        sa.Column("delivered_at", Time, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_creation")),
        sa.UniqueConstraint("caller", "route", "idempotency_key", name=op.f("uq_creation_caller_route_idempotency_key")),
    )
    op.create_index("ix_creation_body", "creation", ["body_sha256", "id"])
    op.create_index("ix_creation_created_at", "creation", ["created_at"])


def downgrade() -> None:
    op.drop_table("creation")

"""Add the credentials of workers on other hosts, and the version of the control plane."""

import sqlalchemy as sa
from alembic import op

revision = "0032"
down_revision = "0031"


def upgrade() -> None:
    op.add_column("storage_state", sa.Column("version", sa.String(), nullable=True))
    op.create_table(
        "worker_credential",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("database_role", sa.String(), nullable=True),
        sa.Column("broker_user", sa.String(), nullable=True),
        sa.Column("broker_password_sha256", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker_credential")),
    )
    active = sa.text("revoked_at IS NULL")
    op.create_index(
        "uq_worker_credential_active",
        "worker_credential",
        ["key_id", "name"],
        unique=True,
        sqlite_where=active,
        postgresql_where=active,
    )


def downgrade() -> None:
    op.drop_index("uq_worker_credential_active", table_name="worker_credential")
    op.drop_table("worker_credential")
    op.drop_column("storage_state", "version")

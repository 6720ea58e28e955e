"""Add shared engines, sleeping deployments, parity checks and aliases."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
LIVE = "status IN ('queued', 'starting', 'ready', 'asleep')"
HOLDS_NAME = sa.text(f"{LIVE} AND replaces IS NULL")
FOLLOWS = sa.text(f"{LIVE} AND replaces IS NOT NULL")
BEFORE = sa.text("status IN ('queued', 'starting', 'ready')")
NAMES = ("uq_deployment_live_name", "uq_deployment_next")


def upgrade() -> None:
    # Deployments with an empty key share no engine; those of older versions each have their own.
    for column in (
        sa.Column("engine_key", sa.String(), nullable=False, server_default=""),
        sa.Column("idle_seconds", sa.Float(), nullable=False, server_default="0"),
        sa.Column("parity_mode", sa.String(length=32), nullable=False, server_default="off"),
        sa.Column("parity", JSON, nullable=True),
        sa.Column("replaces", sa.String(), nullable=True),
        sa.Column("upstream_model", sa.String(), nullable=True),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
    ):
        op.add_column("deployment", column)
    op.drop_index("uq_deployment_live_name", table_name="deployment")
    for name, where in zip(NAMES, (HOLDS_NAME, FOLLOWS), strict=True):
        op.create_index(
            name, "deployment", ["name"], unique=True, sqlite_where=where, postgresql_where=where
        )
    op.create_table(
        "alias",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("targets", JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_alias")),
    )
    op.create_table(
        "alias_version",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("targets", JSON, nullable=False),
        sa.Column("restores", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_version")),
        sa.UniqueConstraint("alias", "version", name=op.f("uq_alias_version_alias_version")),
    )


def downgrade() -> None:
    op.drop_table("alias_version")
    op.drop_table("alias")
    for name in NAMES:
        op.drop_index(name, table_name="deployment")
    # The older schema has neither the status nor the column.
    op.execute("UPDATE deployment SET status = 'stopped' WHERE status = 'asleep' OR replaces IS NOT NULL")
    op.create_index(
        "uq_deployment_live_name",
        "deployment",
        ["name"],
        unique=True,
        sqlite_where=BEFORE,
        postgresql_where=BEFORE,
    )
    for name in (
        "last_used_at", "queued_at", "upstream_model", "replaces",
        "parity", "parity_mode", "idle_seconds", "engine_key",
    ):  # fmt: skip
        op.drop_column("deployment", name)

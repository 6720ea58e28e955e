"""Add promotions, the traffic of aliases, and who has changed an alias."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0021"
down_revision = "0020"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
IS_ACTIVE = sa.text("status = 'active'")


def upgrade() -> None:
    for table in ("alias", "alias_version"):
        op.add_column(table, sa.Column("changed_by", sa.String(), nullable=True))
    op.create_table(
        "promotion",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("deployment", sa.String(), nullable=False),
        sa.Column("deployment_id", sa.String(), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("version_before", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("step_started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("steps", Json, nullable=False),
        sa.Column("judgement", Json, nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name=op.f("fk_promotion_run_id_run")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_promotion")),
    )
    op.create_index(
        "uq_promotion_active_alias",
        "promotion",
        ["alias"],
        unique=True,
        sqlite_where=IS_ACTIVE,
        postgresql_where=IS_ACTIVE,
    )
    op.create_table(
        "alias_traffic",
        sa.Column("alias", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("deployment_id", sa.String(), nullable=False),
        sa.Column("reporter", sa.String(), nullable=False),
        sa.Column("counts", Json, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("alias", "version", "deployment_id", "reporter", name=op.f("pk_alias_traffic")),
    )


def downgrade() -> None:
    op.drop_table("alias_traffic")
    op.drop_index("uq_promotion_active_alias", "promotion")
    op.drop_table("promotion")
    for table in ("alias_version", "alias"):
        op.drop_column(table, "changed_by")

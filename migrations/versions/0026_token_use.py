"""Add the models and the tokens of a day to the limits of keys, and what gateways have counted of them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0026"
down_revision = "0025"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    op.add_column("api_key", sa.Column("tokens_per_day", sa.BigInteger(), nullable=True))
    op.add_column("api_key", sa.Column("models", Json, nullable=True))
    op.create_table(
        "token_use",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("reporter", sa.String(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_token_use")),
        sa.UniqueConstraint("key_id", "day", "reporter", name=op.f("uq_token_use_key_id_day_reporter")),
    )


def downgrade() -> None:
    op.drop_table("token_use")
    op.drop_column("api_key", "models")
    op.drop_column("api_key", "tokens_per_day")

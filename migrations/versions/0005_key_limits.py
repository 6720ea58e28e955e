"""Add the rate limits of API keys."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

LIMITS = ("requests_per_minute", "concurrent_requests")


def upgrade() -> None:
    for limit in LIMITS:
        op.add_column("api_key", sa.Column(limit, sa.Integer(), nullable=True))


def downgrade() -> None:
    for limit in LIMITS:
        op.drop_column("api_key", limit)

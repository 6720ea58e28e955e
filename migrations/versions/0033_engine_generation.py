"""Correct the configs of runs whose completions vLLM should have generated inside the training program."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0033"
down_revision = "0032"

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
run = sa.table(
    "run", sa.column("id", sa.String()), sa.column("stage", sa.String()), sa.column("config", Json)
)


def upgrade() -> None:
    connection = op.get_bind()
    sampled = sa.select(run.c.id, run.c.config).where(run.c.stage.in_(("grpo", "distill", "preflight")))
    for run_id, config in connection.execute(sampled).all():
        corrected = _correct(config)
        if corrected != config:
            connection.execute(sa.update(run).where(run.c.id == run_id).values(config=corrected))


def downgrade() -> None:
    """The removed fields had no effect that could be restored."""


def _correct(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config without removed fields: no run with a value other than `transformers` could start."""
    if isinstance(target := config.get("target"), dict):
        return config | {"target": _correct(target)}
    removed = {
        "grpo": {"vllm_server_url"},
        "distill": {"generation", "vllm_memory_share", "vllm_server_url"},
    }.get(config["stage"], set())
    kept = {name: value for name, value in config.items() if name not in removed}
    if kept.get("generation") in ("vllm_colocate", "vllm_server"):
        kept["generation"] = "transformers"
    return kept

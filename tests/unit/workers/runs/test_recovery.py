"""The config with which a run resumes after its device ran out of memory."""

from typing import Any

import pytest

from trainers.configs import parse_stage
from workers.runs.recovery import reduce_memory

STAGE = {"base": "a/b", "dataset": "rows.jsonl", "batch_size": 16, "micro_batch_size": 8}
REWARDS = [{"kind": "chrf"}]


@pytest.mark.parametrize(
    ("values", "micro_batch_size"),
    [
        ({"stage": "sft"}, 4),
        ({"stage": "dpo", "losses": {"sigmoid": 1, "sft": 0.5}}, 4),
        ({"stage": "dpo", "losses": {"sigmoid": 1, "aot": 1}}, None),
        ({"stage": "grpo", "rewards": REWARDS}, 4),
        ({"stage": "grpo", "rewards": REWARDS, "loss": "bnpo"}, None),
        ({"stage": "sft", "micro_batch_size": 1}, None),
    ],
)
def test_the_micro_batch_is_halved_unless_that_would_change_the_objective(
    values: dict[str, Any], micro_batch_size: int | None
) -> None:
    reduced = reduce_memory(parse_stage(STAGE | values).model_dump(mode="json"))
    assert (reduced.get("smaller_config") or {}).get("micro_batch_size") == micro_batch_size

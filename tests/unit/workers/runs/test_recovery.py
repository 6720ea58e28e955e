"""The config with which a run resumes after its device ran out of memory."""

from typing import Any

import pytest

from trainers.configs import parse_stage
from trainers.runtime.errors import OutOfMemory
from workers.runs.recovery import reduce_memory

STAGE = {"base": "a/b", "dataset": "rows.jsonl", "batch_size": 16, "micro_batch_size": 8}
RECOMPUTED = {"activation_checkpointing": True}
REWARDS = [{"kind": "chrf"}]


def reduce(values: dict[str, Any], recomputes_all: bool = False) -> tuple[dict[str, Any] | None, str]:
    """Return the settings that change, and the code of the warning or the hint."""
    config = parse_stage(STAGE | values).model_dump(mode="json")
    end = reduce_memory(OutOfMemory("no memory", "Lower something."), config, recomputes_all)
    assert end.error is not None
    if end.smaller_config is None or end.warning is None:
        return None, end.error.hint or ""
    changed = {name: value for name, value in end.smaller_config.items() if value != config[name]}
    return changed, end.warning.data["code"]


@pytest.mark.parametrize("values", [{}, {"activation_checkpointing": False}, {"micro_batch_size": 1}])
def test_first_all_activations_are_recomputed(values: dict[str, Any]) -> None:
    assert reduce({"stage": "sft"} | values) == (RECOMPUTED, "recomputation_enabled")


def test_what_the_program_recomputes_already_is_not_tried_again() -> None:
    assert reduce({"stage": "sft"}, recomputes_all=True) == ({"micro_batch_size": 4}, "micro_batch_halved")


@pytest.mark.parametrize(
    ("values", "micro_batch_size"),
    [
        ({"stage": "sft"}, 4),
        ({"stage": "sft", "micro_batch_size": 2}, 1),
        ({"stage": "dpo", "losses": {"sigmoid": 1, "sft": 0.5}}, 4),
        ({"stage": "dpo", "losses": {"sigmoid": 1, "aot": 1}}, None),
        ({"stage": "grpo", "rewards": REWARDS}, 4),
        ({"stage": "grpo", "rewards": REWARDS, "loss": "bnpo"}, None),
        ({"stage": "sft", "micro_batch_size": 1}, None),
    ],
)
def test_then_the_micro_batch_is_halved_unless_that_would_change_the_objective(
    values: dict[str, Any], micro_batch_size: int | None
) -> None:
    changed, _ = reduce(values | RECOMPUTED)
    assert (changed or {}).get("micro_batch_size") == micro_batch_size


def test_a_base_in_four_bits_is_offered_and_never_chosen() -> None:
    last = {"stage": "sft", "micro_batch_size": 1, **RECOMPUTED}
    changed, hint = reduce(last)
    assert changed is None
    assert "tuning.quantization to nf4" in hint
    assert "nf4" not in reduce(last | {"tuning": {"quantization": "nf4"}})[1]
    assert "tuning.method lora" in reduce(last | {"tuning": {"method": "full"}})[1]


def test_a_stage_whose_engine_samples_is_offered_only_what_it_accepts() -> None:
    sampled = {"stage": "grpo", "rewards": REWARDS, "generation": "vllm", "micro_batch_size": 1}
    hint = reduce(sampled | RECOMPUTED)[1]
    assert "lower vllm_memory_share" in hint
    assert "nf4" not in hint and "fsdp2" not in hint

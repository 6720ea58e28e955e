"""The arithmetic of a stage follows from its rows, its tuning and the size that a model's config states."""

from typing import Any

import pytest

from trainers.configs import parse_stage
from trainers.configs.training import TrainingConfig
from trainers.preflight.compute_estimate import (
    count_active_parameters,
    count_parameters,
    describe_duration,
    estimate_flops,
    read_size_in_name,
)

QWEN_0_5B = {
    "hidden_size": 896, "num_hidden_layers": 24, "intermediate_size": 4864, "vocab_size": 151936
}  # fmt: skip


def flops(stage: str = "sft", **fields: object) -> float:
    config = parse_stage({"stage": stage, "base": "b", "dataset": "d", **fields})
    assert isinstance(config, TrainingConfig)
    return estimate_flops(config, parameters=1e9, rows=1000, tokens_per_row=100)


def test_lora_takes_four_operations_for_each_parameter_and_token_and_full_tuning_six() -> None:
    assert flops() == 4e14
    assert flops(tuning={"method": "full"}, epochs=2) == 1.2e15
    assert flops(max_steps=1, batch_size=16) == 16 * 100 * 4e9


def test_a_reference_and_generation_cost_more() -> None:
    grpo = {"rewards": [{"kind": "correctness"}], "num_generations": 4, "max_completion_length": 50}
    assert flops("dpo") == 6e14
    assert flops("grpo", batch_size=16, **grpo) == 4000 * 150 * 8e9


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5e9),
        ("meta-llama/Llama-3.2-1B", 1e9),
        ("google/gemma-3-270m-it", 270e6),
        ("microsoft/Phi-4-mini-instruct", None),
        ("openai-community/gpt2", None),
    ],
)
def test_the_size_is_read_from_a_name(name: str, parameters: float | None) -> None:
    assert read_size_in_name(name) == parameters


def test_the_size_of_a_config_is_near_the_true_one() -> None:
    assert count_parameters(QWEN_0_5B) == pytest.approx(494e6, rel=0.15)
    assert count_parameters({"text_config": QWEN_0_5B}) == count_parameters(QWEN_0_5B)
    assert count_parameters({"hidden_size": "many"}) is None


@pytest.mark.parametrize(
    ("names", "total", "active"),
    [
        (("num_experts", "moe_intermediate_size", 2048, 48, 768, 128, 8, 151936), 30.5e9, 3.3e9),
        (("num_local_experts", "intermediate_size", 4096, 32, 14336, 8, 2, 32000), 46.7e9, 12.9e9),
    ],
    ids=["Qwen3-30B-A3B", "Mixtral-8x7B"],
)
def test_all_experts_count_for_the_size_and_those_of_a_token_for_the_time(
    names: tuple[Any, ...], total: float, active: float
) -> None:
    experts, inner, *sizes = names
    keys = ("hidden_size", "num_hidden_layers", inner, experts, "num_experts_per_tok", "vocab_size")
    config = dict(zip(keys, sizes, strict=True))
    assert count_parameters(config) == pytest.approx(total, rel=0.15)
    assert count_active_parameters(config) == pytest.approx(active, rel=0.15)


def test_long_durations_are_in_days() -> None:
    assert (describe_duration(7200), describe_duration(3 * 86400)) == ("2 hours", "3 days")

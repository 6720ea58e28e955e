"""Goal: GRPO raises the reward, writes samples, and resumes after a kill. Method: tiny real runs."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rapidfuzz import fuzz, utils
from safetensors.torch import load_file

from tests.integration.trainers.conftest import Programs, assert_same_run, events, kill_at_step, losses
from tests.integration.trainers.stages import run_stage
from trainers.configs import parse_stage
from trainers.configs.rewards import CorrectnessReward, FormatReward
from trainers.grpo import plan
from trainers.modeling.load import load_tokenizer
from trainers.rendering.render import read_prompt_completions
from trainers.runtime import run_dir as files
from trainers.runtime.errors import DatasetInvalid
from trainers.training.on_policy.rollouts import (
    MIN_CONSTANT_GROUPS,
    RolloutRecorder,
    build_prompt_dataset,
    load_prompts,
)

STEPS = 24


@pytest.fixture(scope="module")
def lora(adapted: dict[str, str], training_rows: str) -> dict[str, Any]:
    # The model is too weak for a correct answer, but chrF distinguishes how close its completions are.
    return {
        "stage": "grpo",
        "base": adapted,
        "dataset": training_rows,
        "rewards": [{"kind": "chrf", "weight": 2}, {"kind": "format"}],
        "tuning": {"method": "lora", "rank": 8, "alpha": 16, "dropout": 0.1},
        "max_steps": STEPS,
        "batch_size": 16,
        "micro_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "beta": 0.02,
        "learning_rate": 5e-3,
        "log_every_steps": 1,
        "save_every_steps": 6,
    }


@pytest.fixture(scope="module")
def lora_run(lora: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_to_end(lora, tmp_path_factory.mktemp("lora") / "run")


def test_adapter_moves_from_the_sft_adapter_which_is_the_reference(
    lora_run: Path, adapted: dict[str, str]
) -> None:
    before = load_file(Path(adapted["adapter"]) / "adapter_model.safetensors")
    after = load_file(lora_run / "model" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all((after[name] - before[name]).abs().max() > 0 for name in before)
    divergence = values(lora_run, "kl")
    assert divergence[0] == pytest.approx(0, abs=1e-6)
    assert divergence[-1] > 1e-3


def test_metrics_and_result_tell_the_rewards(lora_run: Path) -> None:
    rewards = values(lora_run, "reward")
    weighted = zip(
        values(lora_run, "rewards/chrf/mean"), values(lora_run, "rewards/format/mean"), strict=True
    )
    assert rewards == pytest.approx([2 * chrf + form for chrf, form in weighted])
    assert values(lora_run, "epoch")[-1] == pytest.approx(STEPS * 4 / 158, abs=1e-3)
    result = files.read_result(lora_run)
    assert result is not None
    assert (result["stage"], result["model"]["kind"]) == ("grpo", "adapter")
    assert (result["metrics"]["first_reward"], result["metrics"]["last_reward"]) == (rewards[0], rewards[-1])
    assert result["metrics"]["tokens"] > STEPS * 16 * 12


def test_samples_hold_answers_with_the_value_of_each_reward(lora_run: Path) -> None:
    samples = files.read_lines(lora_run / "samples.jsonl")
    assert [sample["step"] for sample in samples] == [step for step in range(1, STEPS + 1) for _ in range(4)]
    assert len({json.dumps(sample["prompt"]) for sample in samples[:4]}) == 1
    for sample in samples:
        assert sample["reference"].splitlines()[-1].startswith("#### ")
        assert sample["total"] == 2 * sample["rewards"]["chrf"] + sample["rewards"]["format"]
    assert len({sample["completion"] for sample in samples}) > STEPS


def test_killed_run_samples_the_same_answers_again(
    programs: Programs, lora: dict[str, Any], lora_run: Path, tmp_path: Path
) -> None:
    kill_at_step(programs, "trainers.grpo", lora, tmp_path, at_step=14)
    run_to_end(lora, tmp_path)
    assert_same_run(tmp_path, lora_run, "adapter_model.safetensors")
    assert by_step(tmp_path) == by_step(lora_run)


def test_full_tuning_moves_away_from_the_merged_adapter_and_warns_of_a_useless_reward(
    lora: dict[str, Any], lora_run: Path, tmp_path: Path
) -> None:
    rewards = [
        {"kind": "chrf", "weight": 2},
        {"kind": "length", "unit": "characters", "limit": 999, "span": 9},
    ]
    more = {"tuning": {"method": "full"}, "rewards": rewards, "learning_rate": 1e-3, "max_steps": 8}
    run_to_end(lora | more, tmp_path)
    divergence = values(tmp_path, "kl")
    assert divergence[0] == pytest.approx(0, abs=1e-6)
    assert divergence[-1] > 1e-4
    # The same model samples the same first completions.
    assert values(tmp_path, "rewards/chrf/mean")[0] == values(lora_run, "rewards/chrf/mean")[0]
    [warning] = events(tmp_path, "warning")
    assert (warning["code"], "'length'" in warning["message"]) == ("reward_constant", True)
    assert max(losses(tmp_path)) == 8


def test_a_grader_rewards_completions_by_fields_of_their_rows(
    lora: dict[str, Any], write_rows: Callable[[list[dict[str, Any]]], str], tmp_path: Path
) -> None:
    asked = [{"role": "user", "content": f"What is {n} + {n}?"} for n in range(8)]
    rows = [{"messages": [one], "reference_answer": f"{2 * n}"} for n, one in enumerate(asked)]
    fuzzy = {
        "type": "text_similarity",
        "name": "close",
        "evaluation_metric": "fuzzy_match",
        "input": "{{sample.output_text}}",
        "reference": "The answer is {{item.reference_answer}}.",
    }
    config = lora | {"dataset": write_rows(rows), "max_steps": 2, "save_every_steps": 2}
    run_to_end(config | {"rewards": [{"kind": "grader", "name": "close", "grader": fuzzy}]}, tmp_path)
    for sample in files.read_lines(tmp_path / "samples.jsonl"):
        n = int(sample["prompt"][-1]["content"].split()[-1].rstrip("?"))
        expected = fuzz.WRatio(
            sample["completion"], f"The answer is {2 * n}.", processor=utils.default_process
        )
        assert sample["rewards"]["close"] == pytest.approx(expected / 100)
    result = files.read_result(tmp_path)
    assert result is not None
    assert [result["metrics"][name] for name in ("graded", "grader_errors", "grader_unsuitable")] == [
        32,
        0,
        0,
    ]
    unknown = fuzzy | {"reference": "{{item.absent}}"}
    with pytest.raises(DatasetInvalid, match=r"Row 1 .* there is no `item.absent`"):
        plan(parse_stage(config | {"rewards": [{"kind": "grader", "grader": unknown}]}))  # type: ignore[arg-type]
    both = [{"kind": "grader", "grader": fuzzy}, {"kind": "chrf"}]
    with pytest.raises(DatasetInvalid, match=r"Row 1 .* has no completion"):
        plan(parse_stage(config | {"rewards": both}))  # type: ignore[arg-type]


def test_training_is_the_same_with_and_without_validation(
    lora: dict[str, Any], held_out_rows: str, tmp_path: Path
) -> None:
    short = lora | {"max_steps": 4, "save_every_steps": 2}
    validation = {"validation_dataset": held_out_rows, "max_validation_rows": 3}
    plain = run_to_end(short, tmp_path / "plain")
    validated = run_to_end(short | validation, tmp_path / "validated")
    assert losses(validated) == losses(plain)
    found = [event for event in events(validated, "metrics") if "validation_reward" in event["values"]]
    assert [event["step"] for event in found] == [2, 4]
    assert "best_step" not in (files.read_json(validated / files.RESULT) or {})["metrics"]


def test_dry_run_returns_the_resolved_plan(lora: dict[str, Any]) -> None:
    planned = plan(parse_stage(lora | {"max_steps": None}))  # type: ignore[arg-type]
    expected = {"stage": "grpo", "rows": 158, "prompts_per_step": 4, "steps": 40, "batch_size": 16}
    assert expected.items() <= planned.items()


def test_every_pass_holds_every_prompt_once_in_the_order_of_earlier_versions(
    training_rows: str, starter: Path
) -> None:
    """A run that another version has begun resumes with the same prompts."""
    pairs = [turns[-1] for turns in read_prompt_completions(training_rows)]
    prompts = load_prompts(training_rows, [], load_tokenizer(str(starter)))
    count = 2 * len(pairs) + 5
    asked = list(build_prompt_dataset(prompts, count, seed=1))
    rng = random.Random(1)
    order = [row for _ in range(3) for row in rng.sample(range(len(pairs)), len(pairs))]
    assert asked == [
        {"prompt": pairs[row].prompt, "reference": pairs[row].completion_text} for row in order[:count]
    ]
    assert order[: len(pairs)] != order[len(pairs) : 2 * len(pairs)]


def test_reward_is_constant_only_after_groups_in_a_row(training_rows: str) -> None:
    rollouts = RolloutRecorder([FormatReward()], num_generations=2)
    columns = {"prompts": ["a", "a"], "reference": ["#### 1", "#### 1"]}
    for _ in range(MIN_CONSTANT_GROUPS - 1):
        rollouts.functions[0](["#### 1", "#### 1"], **columns)
    assert rollouts.constant_rewards() == []
    rollouts.functions[0](["#### 1", "no"], **columns)
    for _ in range(MIN_CONSTANT_GROUPS):
        assert rollouts.constant_rewards() == []
        rollouts.functions[0](["no", "no"], **columns)
    assert rollouts.constant_rewards() == ["format"]


def test_references_without_an_answer_are_named(
    starter: Path, write_rows: Callable[[list[dict[str, Any]]], str]
) -> None:
    tokenizer = load_tokenizer(str(starter))
    good, vague = {"question": "2 + 2?", "answer": "#### 4"}, {"question": "Why?", "answer": "Because."}
    with pytest.raises(DatasetInvalid, match=r"1 of 2 rows .* have no number .* first in row 2"):
        load_prompts(write_rows([good, vague]), [CorrectnessReward()], tokenizer)
    assert load_prompts(write_rows([good, vague]), [FormatReward()], tokenizer).rows == 2
    call = {"type": "function", "function": {"name": "add", "parameters": {}}}
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    with pytest.raises(DatasetInvalid, match=r"Row 1 .* has tools"):
        load_prompts(write_rows([{"messages": turns, "tools": [call]}]), [FormatReward()], tokenizer)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"batch_size": 12}, "batch_size 12 is not a multiple of num_generations 8"),
        ({"rewards": []}, "at least 1"),
        ({"num_generations": 1}, "greater than or equal to 2"),
    ],
)
def test_groups_that_cannot_be_formed_are_refused(values: dict[str, Any], why: str) -> None:
    config = {"stage": "grpo", "base": "a/b", "dataset": "rows.jsonl", "rewards": [{"kind": "correctness"}]}
    with pytest.raises(ValidationError, match=why):
        parse_stage(config | values)


def run_to_end(config: dict[str, Any], run_dir: Path) -> Path:
    assert run_stage(config, run_dir) is not None
    return run_dir


def values(run_dir: Path, name: str) -> list[float]:
    return [event["values"][name] for event in events(run_dir, "metrics")]


def by_step(run_dir: Path) -> dict[int, list[dict[str, Any]]]:
    """Return the samples by step; steps after the last checkpoint ran twice, with equal completions."""
    samples: dict[int, list[dict[str, Any]]] = {}
    for sample in files.read_lines(run_dir / "samples.jsonl"):
        kept = samples.setdefault(sample["step"], [])
        if sample not in kept:
            kept.append(sample)
    return samples

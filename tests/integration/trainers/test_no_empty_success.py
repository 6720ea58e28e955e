"""Goal: a run that succeeds has trained. Method: runs of one step, and runs that cannot learn."""

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.trainers.conftest import events
from tests.integration.trainers.stages import run_stage
from trainers import sft
from trainers.configs import parse_stage
from trainers.configs.training import LearningRateSchedule
from trainers.runtime import run_dir as files
from trainers.runtime.errors import ConfigInvalid
from trainers.training.diagnosis.weight_changes import WeightChangeDetector, WeightsUnchanged
from trainers.training.schedule import learning_rate_share

Rows = list[dict[str, Any]]
PAIRS: Rows = [
    {"prompt": f"What is {n} + {n}?", "chosen": f"#### {2 * n}", "rejected": f"#### {n}"} for n in range(10)
]
ANSWERS: Rows = [{"question": pair["prompt"], "answer": pair["chosen"]} for pair in PAIRS]
GRPO = {
    "rewards": [{"kind": "chrf"}],
    "batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 4,
    "max_steps": 1,
}
# Every completion is far shorter than the limit, so all rewards are equal.
EQUAL_REWARDS = [{"kind": "length", "unit": "characters", "limit": 999, "span": 9}]


@pytest.fixture
def stage(starter: Path, write_rows: Callable[[Rows], str]) -> Callable[..., dict[str, Any]]:
    def build(kind: str, **more: Any) -> dict[str, Any]:
        rows = PAIRS if kind == "dpo" else ANSWERS
        defaults: dict[str, Any] = GRPO if kind == "grpo" else {}
        shared = {"stage": kind, "base": str(starter), "dataset": write_rows(rows), "log_every_steps": 1}
        return shared | defaults | more

    return build


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_ten_rows_at_the_defaults_train_in_their_only_step(
    stage: Callable[..., dict[str, Any]], kind: str, tmp_path: Path
) -> None:
    assert run_stage(stage(kind), tmp_path) is not None
    (step,) = events(tmp_path, "metrics")
    assert step["values"]["learning_rate"] == parse_stage(stage(kind)).learning_rate  # type: ignore[attr-defined]
    adapter = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert all(tensor.any() for name, tensor in adapter.items() if "lora_B" in name)


@pytest.mark.parametrize("schedule", LearningRateSchedule)
@pytest.mark.parametrize(("warmup", "steps"), [(0, 1), (1, 1), (1, 3), (3, 3), (3, 100), (99, 100)])
def test_the_warm_up_rises_in_equal_parts_and_no_step_has_a_rate_of_0(
    schedule: LearningRateSchedule, warmup: int, steps: int
) -> None:
    shares = [learning_rate_share(step, schedule, warmup, steps) for step in range(steps)]
    assert shares[:warmup] == [(step + 1) / warmup for step in range(warmup)]
    assert max(shares) == 1
    assert min(shares) > 0
    assert all(later <= earlier for earlier, later in pairwise(shares[max(0, warmup - 1) :]))
    assert learning_rate_share(steps, schedule, warmup, steps) in (0, 1)


def test_a_plan_whose_rates_are_all_0_is_refused(
    stage: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    values = stage("sft", learning_rate=1e-50, preflight="off")
    with pytest.raises(ConfigInvalid, match="The learning rate is 0 in all 1 steps") as planned:
        sft.plan(parse_stage(values))  # type: ignore[arg-type]
    assert planned.value.hint == "Raise learning_rate; the default is 0.0002."
    with pytest.raises(ConfigInvalid, match="The learning rate is 0"):
        run_stage(values, tmp_path)


@pytest.mark.parametrize("tuning", [{"method": "lora", "dropout": 0.1}, {"method": "full"}], ids=str)
def test_a_run_of_equal_rewards_fails_because_it_changed_nothing(
    stage: Callable[..., dict[str, Any]], tuning: dict[str, Any], tmp_path: Path
) -> None:
    values = stage("grpo", rewards=EQUAL_REWARDS, max_steps=2, tuning=tuning)
    with pytest.raises(WeightsUnchanged, match="After 2 steps the model is exactly as before") as failed:
        run_stage(values, tmp_path)
    assert "rewards" in str(failed.value.hint)
    assert files.read_result(tmp_path) is None
    assert not (tmp_path / "model").exists()


def test_a_rate_that_rounds_away_fails_a_continued_adapter(
    stage: Callable[..., dict[str, Any]], adapted: dict[str, str], tmp_path: Path
) -> None:
    tuning = {"rank": 8, "alpha": 16}
    values = stage("sft", base=adapted, learning_rate=1e-30, tuning=tuning, preflight="off")
    with pytest.raises(WeightsUnchanged, match="learning_rate 1e-30 are too small") as failed:
        run_stage(values, tmp_path)
    assert failed.value.hint == "Raise learning_rate; the default is 0.0002."


@pytest.mark.parametrize("rewards", [EQUAL_REWARDS, [{"kind": "chrf"}]], ids=["equal", "unlike"])
def test_a_resumed_run_remembers_whether_earlier_steps_changed_the_weights(
    stage: Callable[..., dict[str, Any]], rewards: Rows, tmp_path: Path
) -> None:
    values = stage("grpo", rewards=rewards, max_steps=2, save_every_steps=1)
    first = tmp_path / "first"
    if rewards == EQUAL_REWARDS:
        with pytest.raises(WeightsUnchanged):
            run_stage(values, first)
        with pytest.raises(WeightsUnchanged, match="After 2 steps"):
            run_stage(values, first)
    else:
        assert run_stage(values, first) is not None
        (first / files.RESULT).unlink()
        shutil.rmtree(first / files.MODEL)
        assert run_stage(values, first) is not None


def test_one_changed_number_is_found_and_the_factor_without_effect_is_ignored() -> None:
    model = torch.nn.ModuleDict({"lora_A": torch.nn.Linear(3, 2), "lora_B": torch.nn.Linear(2, 3)})
    layer = torch.nn.ModuleDict({"q": model})
    with torch.no_grad():
        for tensor in model["lora_B"].parameters():
            tensor.zero_()
    detector = WeightChangeDetector()
    detector.start(layer)
    with torch.no_grad():
        model["lora_A"].weight += 1
        model["lora_B"].weight[0, 0] = -0.0
    detector.check(layer)
    assert not detector.found
    with torch.no_grad():
        model["lora_B"].weight[1, 1] = 1e-40
    detector.check(layer)
    assert detector.found


def test_a_loss_that_rises_is_one_warning_also_after_a_resumption(
    stage: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    logs = {"log_every_steps": 1, "save_every_steps": 4, "warmup_ratio": 0}
    values = stage("sft", learning_rate=1.0, max_steps=8, tuning={"method": "full"}, **logs)
    assert run_stage(values, tmp_path) is not None
    found = [event for event in events(tmp_path, "warning") if event["code"] == "loss_unstable"]
    (warning,) = found
    assert "Lower learning_rate, now 1 (the default of full tuning is 2e-05)" in warning["message"]
    (tmp_path / files.RESULT).unlink()
    shutil.rmtree(tmp_path / files.CHECKPOINTS / "step-00000008")
    assert run_stage(values, tmp_path) is not None
    assert [event for event in events(tmp_path, "warning") if event["code"] == "loss_unstable"] == found

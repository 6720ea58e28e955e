"""Goal: DPO with MLX trains what DPO with torch trains. Method: both programs on the same pairs and adapter.

Everything runs on MLX's CPU device, in fp32.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.trainers.conftest import UNEQUAL, Programs, assert_same_run, events, kill_at_step
from tests.integration.trainers.mlx.windowed_model import write_windowed_model
from tests.integration.trainers.stages import run_stage
from trainers.configs import DpoConfig, DpoLoss, parse_stage
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.modeling.load import ModelUnsupported

preferences = pytest.importorskip("trainers.mlx.training.preferences")

STEPS = 10  # 18 pairs in batches of 4: an epoch of 5 steps ends in a batch that is not full.
# Those that MLX does not have: by-products of TRL's head, and of the Trainer's clock.
TORCH_ONLY = {"entropy", "logits/chosen", "logits/rejected", "num_tokens", "num_input_tokens_seen"}


@pytest.fixture(scope="module")
def stage(adapted: dict[str, str], write_rows: Callable[[list[dict[str, Any]]], str]) -> dict[str, Any]:
    """Return a stage on pairs whose sides have several lengths."""
    pairs = [
        {"prompt": row["question"], "chosen": row["answer"], "rejected": row["answer"][: 9 + number % 7]}
        for number, row in enumerate(generate_problems(18, ProblemSplit.train, seed=2))
    ]
    return {
        **{"stage": "dpo", "base": adapted, "dataset": write_rows(pairs), "preflight": "off"},
        **{"tuning": {"method": "lora", "rank": 8, "alpha": 16}, "losses": {"sigmoid": 1, "sft": 0.5}},
        **{"max_steps": STEPS, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3},
        **{"log_every_steps": 1, "save_every_steps": 2, "backend": "mlx"},
    }


def metrics(run_dir: Path) -> dict[tuple[int, str], float]:
    return {
        (event["step"], name): value
        for event in events(run_dir, "metrics")
        for name, value in event["values"].items()
        if name.removeprefix("validation_") not in TORCH_ONLY
        and not name.endswith(("_per_second", "_runtime"))
    }


def test_steps_metrics_and_results_are_those_of_torch(stage: dict[str, Any], tmp_path: Path) -> None:
    stage = stage | {"validation_dataset": stage["dataset"], "validate_every_steps": 5, "max_steps": 5}
    results = [run_stage(stage | {"backend": backend}, tmp_path / backend) for backend in ("torch", "mlx")]
    found, expected = metrics(tmp_path / "mlx"), metrics(tmp_path / "torch")
    accuracies = [key for key in expected if "mean_token_accuracy" in key[1]]
    # TRL takes the mean of each micro-batch, and then the mean of those; MLX that over tokens.
    assert [found.pop(key) for key in accuracies] == pytest.approx(
        [expected.pop(key) for key in accuracies], abs=0.02
    )
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert found[5, "rewards/margins"] > found[1, "rewards/margins"]
    expected_result, result = (each["metrics"] | UNEQUAL for each in results if each is not None)
    assert {name: result[name] for name in expected_result} == pytest.approx(expected_result, abs=1e-4)


def test_each_loss_that_mlx_has_is_that_of_torch(stage: dict[str, Any], tmp_path: Path) -> None:
    losses = [loss for loss in DpoLoss if loss.has_mlx]
    assert set(preferences.PAIR_LOSSES) | {DpoLoss.sft} == set(losses)
    # Powers of two, so that no difference of one loss hides that of another.
    weights = {loss.value: 2.0**number for number, loss in enumerate(losses)}
    stage = stage | {"losses": weights, "max_steps": 2, "beta": 0.3}
    for backend in ("torch", "mlx"):
        run_stage(stage | {"backend": backend}, tmp_path / backend)
    found, expected = metrics(tmp_path / "mlx"), metrics(tmp_path / "torch")
    assert [found[step, "loss"] for step in (1, 2)] == pytest.approx(
        [expected[step, "loss"] for step in (1, 2)], rel=1e-5
    )


def test_dropout_of_the_adapter_that_is_trained_further_is_off(
    stage: dict[str, Any], adapted: dict[str, str], tmp_path: Path
) -> None:
    adapter = Path(shutil.copytree(adapted["adapter"], tmp_path / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"lora_dropout": 0.5}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    changed = stage | {"base": adapted | {"adapter": str(adapter)}, "max_steps": 1}
    run_stage(changed, tmp_path / "run")
    assert metrics(tmp_path / "run")[1, "rewards/margins"] == pytest.approx(0, abs=1e-4)


def test_a_killed_run_resumes_exactly(programs: Programs, stage: dict[str, Any], tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    kill_at_step(programs, "trainers.mlx.dpo", stage, killed, 3)
    for folder in (killed, whole):
        assert run_stage(stage, folder) is not None
    assert [event["exactness"] for event in events(killed, "resumed")] == ["exact"]
    assert_same_run(killed, whole, "adapter_model.safetensors")
    # The reference's log-probabilities are of use during the run only.
    assert not list(whole.glob("*.npy"))


def test_pairs_beyond_a_window_that_mlx_ignores_are_refused_before_the_reference_is_computed(
    stage: dict[str, Any], starter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compute(*_: Any) -> None:
        pytest.fail("the network was used before the rows were checked")

    monkeypatch.setattr(preferences, "_completion_logps", compute)
    long = stage | {"base": str(write_windowed_model(starter, tmp_path / "base", 16)), "max_steps": 2}
    with pytest.raises(ModelUnsupported, match=r"The longest row has .* at most 16"):
        run_stage(long, tmp_path / "run")


def test_losses_that_compare_the_pairs_of_a_micro_batch_are_refused(stage: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="losses has aot and bco_pair, and MLX has sigmoid"):
        parse_stage(stage | {"losses": {"aot": 1, "bco_pair": 1}})
    assert isinstance(parse_stage(stage | {"losses": {"aot": 1}, "backend": "auto"}), DpoConfig)

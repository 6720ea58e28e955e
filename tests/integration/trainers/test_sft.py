"""Goal: SFT writes a complete model and resumes exactly after a kill. Method: tiny real runs."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.integration.trainers.conftest import (
    UNEQUAL,
    Programs,
    assert_same_run,
    events,
    kill_at_step,
    losses,
    wait_for,
)
from tests.integration.trainers.stages import run_stage
from trainers.runtime import run_dir as files

STEPS = 80  # 158 rows in batches of 4: each epoch of 40 steps ends in a batch that is not full.


@pytest.fixture(scope="module")
def lora(starter: Path, training_rows: str) -> dict[str, Any]:
    return {
        "stage": "sft",
        "base": str(starter),
        "dataset": training_rows,
        "tuning": {"method": "lora", "rank": 8, "alpha": 16, "dropout": 0.2},
        "epochs": 2,
        "batch_size": 4,
        "micro_batch_size": 2,
        "learning_rate": 5e-3,
        "log_every_steps": 1,
        "save_every_steps": 10,
    }


@pytest.fixture(scope="module")
def lora_run(
    programs: Programs, lora: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    run_dir = tmp_path_factory.mktemp("lora") / "run"
    status, _, err = programs.run("trainers.sft", lora, run_dir)
    assert status == 0, err
    return run_dir, err


@pytest.fixture(scope="module")
def full(lora: dict[str, Any], lora_run: tuple[Path, str]) -> dict[str, Any]:
    adapted = {"base": lora["base"], "adapter": str(lora_run[0] / "model")}
    return lora | {"base": adapted, "tuning": {"method": "full"}, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def full_run(full: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("full") / "run"
    assert run_stage(full, run_dir) is not None
    return run_dir


def test_lora_run_leaves_an_adapter_and_a_result(lora_run: tuple[Path, str], starter: Path) -> None:
    run_dir, _ = lora_run
    result = files.read_result(run_dir)
    assert result is not None
    assert result["model"] | {"template_sha256": ""} == {
        "path": "model",
        "kind": "adapter",
        "base": str(starter),
        "template_sha256": "",
    }
    assert len(result["model"]["template_sha256"]) == 64
    assert result["metrics"]["steps"] == STEPS
    assert result["metrics"]["train_loss"] == pytest.approx(sum(losses(run_dir).values()) / STEPS)
    assert {path.name for path in (run_dir / "model").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
    }
    config = json.loads((run_dir / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(starter)


def test_lora_moves_every_adapter_matrix_and_lowers_the_loss(lora_run: tuple[Path, str]) -> None:
    weights = load_file(lora_run[0] / "model" / "adapter_model.safetensors")
    assert all(tensor.abs().max() > 0 for tensor in weights.values())
    curve = losses(lora_run[0])
    assert sorted(curve) == list(range(1, STEPS + 1))
    assert sum(curve[step] for step in range(61, 81)) < 0.97 * sum(curve[step] for step in range(1, 21))


def test_first_log_line_has_parameters_rows_and_loss_tokens(lora_run: tuple[Path, str]) -> None:
    assert "20480 of 169536 parameters are trained, on 158 rows in 158 examples, 0 truncated" in lora_run[1]


def test_checkpoints_are_pruned_and_no_scratch_is_left(lora_run: tuple[Path, str]) -> None:
    run_dir, _ = lora_run
    assert [checkpoint.step for checkpoint in files.checkpoints(run_dir)] == list(range(10, STEPS + 1, 10))
    kept = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert kept == ["step-00000070", "step-00000080"]
    assert not (run_dir / "scratch").exists()


def test_no_file_is_written_outside_the_run_directory(lora_run: tuple[Path, str], programs: Programs) -> None:
    # Importing torch creates an empty folder for compiled kernels.
    assert [path for path in programs.home.rglob("*") if path.is_file()] == []


def test_killed_and_stopped_lora_run_repeats_every_loss(
    programs: Programs, lora: dict[str, Any], lora_run: tuple[Path, str], tmp_path: Path
) -> None:
    kill_at_step(programs, "trainers.sft", lora, tmp_path, at_step=23)
    killed_after = files.checkpoints(tmp_path)[-1].step
    second = programs.start("trainers.sft", lora, tmp_path, held_at=55)
    wait_for(lambda: max(losses(tmp_path)) >= 53, second)
    second.send_signal(signal.SIGTERM)
    _, err = second.communicate()
    assert second.returncode == 75, err
    assert f"Resuming after step {killed_after}, exact." in err
    assert not (tmp_path / "result.json").exists()
    stopped_at = files.checkpoints(tmp_path)[-1].step
    assert stopped_at == max(losses(tmp_path))

    assert run_stage(lora, tmp_path) is not None
    assert [event["step"] for event in events(tmp_path, "resumed")] == [killed_after, stopped_at]
    assert_same_run(tmp_path, lora_run[0], "adapter_model.safetensors")


def test_killed_full_run_repeats_every_loss_across_epochs(
    programs: Programs, full: dict[str, Any], full_run: Path, tmp_path: Path
) -> None:
    kill_at_step(programs, "trainers.sft", full, tmp_path, at_step=41)
    saved = files.checkpoints(tmp_path)[-1].step
    assert saved >= STEPS // 2
    assert run_stage(full, tmp_path) is not None
    assert [event["step"] for event in events(tmp_path, "resumed")] == [saved]
    assert_same_run(tmp_path, full_run, "model.safetensors")


def test_run_that_lost_only_its_result_saves_the_same_model(full: dict[str, Any], full_run: Path) -> None:
    before = (full_run / "model" / "model.safetensors").read_bytes()
    (full_run / "result.json").rename(full_run / "former.json")
    assert run_stage(full, full_run) is not None
    assert (full_run / "model" / "model.safetensors").read_bytes() == before
    former = json.loads((full_run / "former.json").read_text())
    result = files.read_result(full_run)
    assert result is not None
    assert result["metrics"] | UNEQUAL == former["metrics"] | UNEQUAL


def test_full_tuning_starts_from_the_merged_adapter(full_run: Path, lora_run: tuple[Path, str]) -> None:
    result = files.read_result(full_run)
    assert result is not None
    assert result["model"]["kind"] == "base"
    assert losses(full_run)[1] < 0.98 * losses(lora_run[0])[1]


def test_lora_continues_a_given_adapter_and_counts_truncated_rows(
    lora: dict[str, Any],
    full: dict[str, Any],
    lora_run: tuple[Path, str],
    write_rows: Callable[[list[dict[str, Any]]], str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def turns(keys: int) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": f"Ada has {keys} keys."},
            {"role": "assistant", "content": f"So {keys} + 3 = {keys + 3}.\n#### {keys + 3}"},
            {"role": "user", "content": "And if there were 4 more? " * 20},
            {"role": "assistant", "content": f"So {keys + 3} + 4 = {keys + 7}.\n#### {keys + 7}"},
        ]

    dataset = write_rows([{"messages": turns(keys)} for keys in range(4)])
    config = lora | {"base": full["base"], "dataset": dataset, "max_length": 64, "max_steps": 1}
    with caplog.at_level("INFO", "trainers"):
        run_stage(config | {"tuning": {"rank": 4, "method": "lora"}}, tmp_path)
    codes = [event["code"] for event in events(tmp_path, "warning")]
    assert codes == ["labels_all_masked", "adapter_settings_kept"]
    assert "on 4 rows in 4 examples, 4 truncated" in caplog.text
    before = load_file(lora_run[0] / "model" / "adapter_model.safetensors")
    after = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all((after[name] - before[name]).abs().max() < 0.02 for name in before)

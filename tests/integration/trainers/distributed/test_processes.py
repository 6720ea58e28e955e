"""Goal: two processes train the model of one process, and their weights are really sharded."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import OFFLINE, ROOT
from tests.integration.trainers.conftest import assert_same_run, losses, wait_for
from tests.integration.trainers.stages import run_stage
from trainers.configs import parse_stage
from trainers.runtime import run_dir as files
from trainers.runtime.errors import ConfigInvalid
from trainers.runtime.launch_command import build_command

SHARDED = {"ddp": 1.0, "zero2": 1.0, "fsdp2": 0.5, "zero3": 0.5}
WEIGHTS = {"full": "model.safetensors", "lora": "adapter_model.safetensors"}


@pytest.fixture
def stage(starter: Path, training_rows: str) -> dict[str, Any]:
    return {
        "stage": "sft",
        "base": str(starter),
        "dataset": training_rows,
        "max_steps": 8,
        "batch_size": 8,
        "micro_batch_size": 2,
        "learning_rate": 5e-3,
        "log_every_steps": 1,
        "save_every_steps": 3,
    }


def start(
    values: dict[str, Any], run_dir: Path, wrapper: str = "on_cpu", **variables: str
) -> "subprocess.Popen[str]":
    """Start the worker's command with a module of these tests around the program."""
    run_dir.mkdir(parents=True, exist_ok=True)
    config = run_dir / "asked.json"
    config.write_text(json.dumps(values))
    arguments = build_command(sys.executable, parse_stage(values), config, run_dir)
    program = arguments.index("trainers.sft")
    arguments.insert(program, f"tests.integration.trainers.distributed.{wrapper}")
    environment = os.environ | OFFLINE | variables | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def run(values: dict[str, Any], run_dir: Path) -> list[dict[str, Any]]:
    """Run to the end and return the reports of the processes."""
    process = start(values, run_dir)
    out, _ = process.communicate(timeout=280)
    assert files.read_result(run_dir) is not None, out
    return [json.loads(path.read_text()) for path in sorted(run_dir.glob("*-processes.json"))]


def assert_like_one_process(stage: dict[str, Any], tuning: str, parallelism: str, folder: Path) -> None:
    stage = stage | {"tuning": {"method": tuning}}
    run_stage(stage, folder / "one")
    held = run(stage | {"devices": 2, "parallelism": parallelism}, folder / "two")
    assert_sharded(held, parallelism)
    if parallelism != "ddp":
        assert_loaded_once(folder / "two")
    assert losses(folder / "two") == pytest.approx(losses(folder / "one"), abs=1e-4)
    one, two = (load_file(folder / name / "model" / WEIGHTS[tuning]) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-3) for name in one)


def assert_sharded(held: list[dict[str, Any]], parallelism: str) -> None:
    """Check that each of two processes has its share of the weights; FSDP2 holds DTensors."""
    assert [process["world_size"] for process in held] == [2, 2]
    for process in held:
        assert process["held"] / process["whole"] == pytest.approx(SHARDED[parallelism], abs=0.01)
        assert (process["kinds"] == ["DTensor"]) == (parallelism == "fsdp2")


@pytest.fixture
def bf16_base(starter: Path, tmp_path: Path) -> str:
    """Return the starter in the dtype in which most models are published, and which full tuning converts."""
    base = tmp_path / "base"
    shutil.copytree(starter, base)
    weights = load_file(base / WEIGHTS["full"])
    save_file({name: weight.bfloat16() for name, weight in weights.items()}, base / WEIGHTS["full"])
    return str(base)


def assert_loaded_once(run_dir: Path) -> None:
    """Check that no process had weights in its own memory before they were sharded."""
    loaded = [json.loads(path.read_text()) for path in sorted(run_dir.glob("*-loaded.json"))]
    assert loaded == [{"copied": 0}] * 2
    assert not list(run_dir.rglob("weights-*"))


@pytest.mark.parametrize(("tuning", "parallelism"), [("lora", "ddp"), ("full", "fsdp2")])
def test_two_processes_train_as_one_does(
    stage: dict[str, Any], bf16_base: str, tuning: str, parallelism: str, tmp_path: Path
) -> None:
    assert_like_one_process(stage | {"base": bf16_base}, tuning, parallelism, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("parallelism", SHARDED)
def test_every_kind_of_sharding_trains_as_one_process_does(
    stage: dict[str, Any], bf16_base: str, tuning: str, parallelism: str, tmp_path: Path
) -> None:
    needs_deepspeed(parallelism)
    assert_like_one_process(stage | {"base": bf16_base}, tuning, parallelism, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("parallelism", ["ddp", "fsdp2"])
def test_two_processes_compile_their_layers(
    stage: dict[str, Any], tuning: str, parallelism: str, tmp_path: Path
) -> None:
    for name in (False, True):
        values = stage | {"tuning": {"method": tuning}, "activation_checkpointing": name, "max_steps": 4}
        run_stage(values, tmp_path / f"one-{name}")
        more = {"devices": 2, "parallelism": parallelism, "compile": True}
        assert_sharded(run(values | more, tmp_path / f"two-{name}"), parallelism)
        assert losses(tmp_path / f"two-{name}") == pytest.approx(losses(tmp_path / f"one-{name}"), abs=1e-4)
        one, two = (
            load_file(tmp_path / f"{count}-{name}" / "model" / WEIGHTS[tuning]) for count in ("one", "two")
        )
        assert one.keys() == two.keys()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("parallelism", SHARDED)
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_stopped_processes_save_one_checkpoint_and_go_on_as_if_they_had_not_stopped(
    stage: dict[str, Any], tuning: str, parallelism: str, tmp_path: Path
) -> None:
    needs_deepspeed(parallelism)
    dropout = {"dropout": 0.1} if tuning == "lora" else {}
    more = {"devices": 2, "parallelism": parallelism, "tuning": {"method": tuning, **dropout}}
    values = stage | more | {"max_steps": 60}
    run(values, tmp_path / "whole")
    process = start(values, tmp_path / "stopped")
    wait_for(lambda: len(losses(tmp_path / "stopped")) >= 10, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert files.read_result(tmp_path / "stopped") is None
    assert files.read_error(tmp_path / "stopped") is None
    saved = files.last_complete_checkpoint(tmp_path / "stopped")
    assert saved is not None
    assert files.checkpoints(tmp_path / "stopped")[-1].step == max(losses(tmp_path / "stopped")) < 60
    assert_sharded(run(values, tmp_path / "stopped"), parallelism)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole", WEIGHTS[tuning])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_checkpoint_in_shards_is_a_model_and_is_resumed_by_one_process(
    stage: dict[str, Any], tmp_path: Path
) -> None:
    values = stage | {"tuning": {"method": "full"}, "schedule": "constant"}
    two = {"devices": 2, "parallelism": "fsdp2"}
    run(values | two | {"max_steps": 6}, tmp_path / "first")
    saved = files.last_complete_checkpoint(tmp_path / "first")
    assert saved is not None and (saved / "optimizer_shards").is_dir()
    (weights,) = saved.glob("model-*.safetensors")
    trained, kept = load_file(tmp_path / "first" / "model" / "model.safetensors"), load_file(weights)
    assert trained.keys() == kept.keys() and all(torch.equal(trained[name], kept[name]) for name in kept)
    for name, more in (("two", two), ("one", {})):
        shutil.copytree(tmp_path / "first", tmp_path / name)
        (tmp_path / name / files.RESULT).unlink()
        run(values | more | {"max_steps": 9}, tmp_path / name)
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), abs=1e-4)


def needs_deepspeed(parallelism: str) -> None:
    if parallelism.startswith("zero"):
        pytest.importorskip("deepspeed")


@pytest.mark.parametrize(
    ("failure", "rank", "code"),
    [
        pytest.param("memory", 0, "out_of_memory", marks=pytest.mark.slow),
        ("memory", 1, "out_of_memory"),
        ("killed", 1, "rank_lost"),
    ],
)
def test_the_error_of_a_rank_is_the_run_s_error_and_the_other_rank_ends(
    stage: dict[str, Any], failure: str, rank: int, code: str, tmp_path: Path
) -> None:
    variables = {"FAILURE": failure, "FAILING_RANK": str(rank)}
    process = start(stage | {"devices": 2}, tmp_path, "failing", **variables)
    out, _ = process.communicate(timeout=280)
    error = files.read_error(tmp_path)
    assert error is not None and error["code"] == code, out
    if failure == "killed":
        assert "Rank 1 of 2 was killed" in error["message"]


def test_fewer_processes_than_devices_is_an_error_and_not_a_slow_run(
    stage: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigInvalid, match="devices is 2, but the number of processes is 1"):
        run_stage(stage | {"devices": 2}, tmp_path)

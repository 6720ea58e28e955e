"""Goal: GRPO samples from an engine that has the adapter of each step, and notices one that has not.

Method: real runs of a tiny model with our engine hf as the child process, which has the protocol of vLLM. The
real vLLM is compared in tests/benchmarks/trainers/grpo_engine.py.
"""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.trainers.conftest import Programs, events, list_children
from tests.integration.trainers.faulty_engine import LAST_GOOD
from tests.integration.trainers.stages import at_checkpoint, run_stage
from trainers.configs import GrpoConfig, parse_stage
from trainers.configs.stages.preflight import HostMemory
from trainers.preflight.memory.estimate import estimate_memory
from trainers.runtime import run_dir as files
from trainers.runtime.errors import EngineFailed
from trainers.runtime.launch_command import build_command
from trainers.training.on_policy.adapter_folders import PREFIX, SHARED_MEMORY

STEPS = 7
# TRL reads a property that transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture(scope="module")
def engine_sampled(adapted: dict[str, str], training_rows: str) -> dict[str, Any]:
    return {
        "stage": "grpo",
        "base": adapted,
        "dataset": training_rows,
        "rewards": [{"kind": "chrf"}],
        "tuning": {"method": "lora", "rank": 8, "alpha": 16},
        "generation": "hf",
        "temperature": 0.8,
        "max_steps": STEPS,
        "batch_size": 16,
        "num_generations": 8,
        "max_completion_length": 12,
        "learning_rate": 1e-2,
        "schedule": "constant",
        "log_every_steps": 1,
        "save_every_steps": 4,
    }


def faulty(kind: str) -> dict[str, Any]:
    return {"engine_program": [sys.executable, "-m", "tests.integration.trainers.faulty_engine", kind]}


def test_an_engine_with_an_old_adapter_is_noticed_in_its_first_step(
    engine_sampled: dict[str, Any], tmp_path: Path
) -> None:
    assert run_stage(engine_sampled | faulty("stale"), tmp_path) is not None
    ratios = [event["values"] for event in events(tmp_path, "metrics")]
    good, stale = ratios[:LAST_GOOD], ratios[LAST_GOOD:]
    assert all(one["importance_ratio/logprob_difference"] < 1e-4 for one in good)
    assert all(one["importance_ratio/mean"] == pytest.approx(1, abs=1e-4) for one in good)
    assert all(one["importance_ratio/logprob_difference"] > 0.002 for one in stale)
    [warning] = events(tmp_path, "warning")
    assert warning["code"] == "sampler_mismatch"
    assert f"At step {LAST_GOOD + 1} the engine samples from another model" in warning["message"]
    # Neither the engine nor an adapter in memory is left.
    assert not list_children("faulty_engine")
    assert not (SHARED_MEMORY / f"{PREFIX}{os.getpid()}").exists()
    assert (tmp_path / "engine.log").stat().st_size


@pytest.mark.slow
def test_an_adapter_that_the_engine_refuses_ends_the_run(
    engine_sampled: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(EngineFailed, match=r"refused /v1/load_lora_adapter with status 400.*planted"):
        run_stage(engine_sampled | faulty("refused"), tmp_path)
    assert len(events(tmp_path, "metrics")) == LAST_GOOD


@pytest.mark.slow
def test_an_engine_that_hangs_in_a_step_ends_the_run_and_is_killed(
    engine_sampled: dict[str, Any], tmp_path: Path
) -> None:
    # It stops in the step of its fourth adapter, or before it has the next one.
    bound, failure = {"engine_timeout_seconds": 90}, "has not returned the completions|did not respond to"
    with pytest.raises(EngineFailed, match=failure):
        run_stage(engine_sampled | faulty("hanging") | bound, tmp_path)
    assert len(events(tmp_path, "metrics")) in (LAST_GOOD, LAST_GOOD + 1)
    assert not list_children("faulty_engine")


@pytest.mark.slow
def test_a_resumed_run_samples_with_the_same_seeds(engine_sampled: dict[str, Any], tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run_stage(engine_sampled, whole) is not None
    at_checkpoint(whole, resumed, step=4)
    assert run_stage(engine_sampled, resumed) is not None
    samples = [one for one in files.read_lines(whole / "samples.jsonl") if one["step"] > 4]
    assert files.read_lines(resumed / "samples.jsonl") == samples
    [event] = events(resumed, "resumed")
    assert event["exactness"] == "approximate" and "same seeds" in event["reasons"][0]


@pytest.mark.slow
def test_two_ranks_sample_from_one_engine_with_the_same_adapter(
    programs: Programs, engine_sampled: dict[str, Any], tmp_path: Path
) -> None:
    values = engine_sampled | {"devices": 2, "queue": "cpu", "micro_batch_size": 4}
    files.write_json(tmp_path / "config.json", values)
    command = build_command(sys.executable, parse_stage(values), tmp_path / "config.json", tmp_path)
    process = programs.popen(command)
    _, log = process.communicate(timeout=240)
    assert process.returncode == 0, log
    ratios = [event["values"] for event in events(tmp_path, "metrics")]
    assert len(ratios) == STEPS
    assert all(one["importance_ratio/logprob_difference"] < 1e-4 for one in ratios)
    # Rows of different ranks have different seeds.
    assert len({one["completion"] for one in files.read_lines(tmp_path / "samples.jsonl")}) > STEPS


def test_the_memory_estimate_has_the_engine_in_place_of_a_cache(engine_sampled: dict[str, Any]) -> None:
    host = HostMemory(worker="h100", device="cuda", memory_bytes=80 << 30)

    def parts(generation: str) -> dict[str, int]:
        config = parse_stage(engine_sampled | {"generation": generation})
        assert isinstance(config, GrpoConfig)
        estimate = estimate_memory(config, [host], 64)
        assert estimate is not None
        return dict(estimate["hosts"][0]["parts"])

    assert parts("vllm")["engine"] == int(0.3 * (80 << 30))
    assert parts("hf")["engine"] > parts("hf")["weights"] / 2
    assert "engine" not in parts("transformers")
    assert "kv_cache" in parts("transformers").keys() - parts("vllm").keys()


def test_no_plan_needs_what_an_engine_excludes(engine_sampled: dict[str, Any]) -> None:
    least = {"devices": 8, "micro_batch_size": 1, "activation_checkpointing": True}

    def saved_by_plans(generation: str) -> int:
        config = parse_stage(engine_sampled | least | {"generation": generation})
        assert isinstance(config, GrpoConfig)
        # vLLM's share of it holds the base, but no plan fits.
        host = HostMemory(worker="small", device="cuda", memory_bytes=16 << 20)
        estimate = estimate_memory(config, [host], 64)
        assert estimate is not None
        (found,) = estimate["hosts"]
        return int(found["needed_bytes"] - found["missing_bytes"] - found["usable_bytes"])

    assert saved_by_plans("transformers") > 0
    assert saved_by_plans("vllm") == 0


def test_an_engine_that_does_not_start_is_named(engine_sampled: dict[str, Any], tmp_path: Path) -> None:
    absent = {"engine_program": [str(tmp_path / "absent")]}
    with pytest.raises(EngineFailed, match=r"The engine hf exited with status 1\. It was not ready yet"):
        run_stage(engine_sampled | absent, tmp_path)
    assert "absent cannot be started" in (tmp_path / "engine.log").read_text()

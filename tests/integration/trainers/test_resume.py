"""Goal: a stopped run resumes exactly. Method: SIGTERM at random micro-batches; compare the runs."""

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.trainers.conftest import assert_same_run, events, losses
from tests.integration.trainers.stages import Recorder, run_stage
from trainers.runtime import run_dir as files

Rows = list[dict[str, Any]]
STOPS = 20
# Enough for a stop in each of two epochs.
SHORT = {"epochs": 2}
LORA = {"method": "lora", "rank": 4, "alpha": 8, "dropout": 0.2}
NO_DROPOUT = LORA | {"dropout": 0.0}
PAIRS: Rows = [
    {"prompt": f"What is {n} + {n}?", "chosen": f"#### {2 * n}", "rejected": f"#### {n}"} for n in range(45)
]
WEIGHTS = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}
# 45 rows in steps of 8, each of 4 micro-batches: epochs end within a step, and most stops fall within one.
STAGES: dict[str, dict[str, Any]] = {
    "sft-lora": {"stage": "sft", "tuning": LORA},
    "sft-full": {"stage": "sft", "tuning": {"method": "full"}, "learning_rate": 1e-3},
    "sft-packed": {"stage": "sft", "tuning": LORA, "packing": True, "max_length": 96, "batch_size": 4},
    "sft-nf4": {"stage": "sft", "tuning": LORA | {"quantization": "nf4"}},
    "sft-checkpointed": {"stage": "sft", "tuning": LORA, "activation_checkpointing": True},
    "sft-8bit": {"stage": "sft", "tuning": {"method": "full"}, "optimizer": "adamw_8bit"},
    "sft-adafactor": {"stage": "sft", "tuning": {"method": "full"}, "optimizer": "adafactor"},
    "sft-noisy": {"stage": "sft", "tuning": LORA, "neftune_alpha": 5},
    "dpo-lora": {"stage": "dpo", "tuning": NO_DROPOUT},
    "dpo-precomputed": {"stage": "dpo", "tuning": NO_DROPOUT, "precompute_reference": True},
    "dpo-full": {"stage": "dpo", "tuning": {"method": "full"}, "learning_rate": 1e-4},
}


@pytest.fixture
def stage(starter: Path, write_rows: Callable[[Rows], str], request: pytest.FixtureRequest) -> dict[str, Any]:
    chosen = STAGES[request.param]
    rows = (
        PAIRS
        if chosen["stage"] == "dpo"
        else [{"question": p["prompt"], "answer": p["chosen"]} for p in PAIRS]
    )
    shared = {"base": str(starter), "dataset": write_rows(rows), "epochs": 4, "batch_size": 8}
    # By steps for rows, and after each step by time for pairs.
    saves = {"save_every_minutes": 1e-4} if chosen["stage"] == "dpo" else {"save_every_steps": 7}
    logs = {"log_every_steps": 1, "learning_rate": 5e-3, "max_length": 128} | saves
    return shared | {"micro_batch_size": 2, "preflight": "off"} | logs | chosen


def _check(stage: dict[str, Any], stops: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)
    assert run_stage(stage, folder / "whole") is not None
    expected, rng = dict(recorder.batches), random.Random(7)
    for number in range(stops):
        recorder.batches.clear()
        stopped = folder / f"stopped-{number}"
        with monkeypatch.context() as patch:
            Interruption(patch, rng.randrange(1, sum(map(len, expected.values()))))
            assert run_stage(stage, stopped) is None
        steps = files.checkpoints(stopped)[-1].step
        assert run_stage(stage, stopped) is not None
        # A step that had started when SIGTERM arrived was finished before the run stopped.
        assert recorder.batches == expected, f"stop {number}, after step {steps}"
        assert losses(stopped) == losses(folder / "whole")
        resumes = [(event["step"], event["exactness"]) for event in events(stopped, "resumed")]
        assert resumes == [(steps, "exact")]
        assert_same_run(stopped, folder / "whole", WEIGHTS[stage["tuning"]["method"]])


class Interruption:
    """SIGTERM from another thread while a micro-batch is being trained."""

    def __init__(self, patch: pytest.MonkeyPatch, at_batch: int) -> None:
        from trainers import dpo, sft

        self._left = at_batch
        for trainer in (sft.RowTrainer, dpo.PairTrainer):
            patch.setattr(trainer, "training_step", self._interrupting(trainer.training_step))

    def _interrupting(self, training_step: Any) -> Any:
        def step(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                sender = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGTERM))
                sender.start()
                sender.join()
            return training_step(*arguments)

        return step


@pytest.mark.parametrize("stage", ["sft-packed", "dpo-lora"], indirect=True)
def test_a_stopped_run_repeats_every_batch_and_loss(
    stage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check(stage | SHORT, 2, tmp_path, monkeypatch)
    steps = [checkpoint.step for checkpoint in files.checkpoints(tmp_path / "whole")]
    assert steps == list(range(1, steps[-1] + 1)) or stage["stage"] == "sft"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES, indirect=True)
def test_a_run_stopped_at_twenty_random_moments_repeats_every_batch_and_loss(
    stage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check(stage, STOPS, tmp_path, monkeypatch)


@pytest.mark.parametrize("stage", ["sft-lora"], indirect=True)
def test_another_micro_batch_after_a_stop_meets_the_same_rows_in_each_step(
    stage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage | SHORT | {"tuning": stage["tuning"] | {"dropout": 0.0}}
    assert run_stage(stage, tmp_path / "whole") is not None
    with monkeypatch.context() as patch:
        Interruption(patch, 37)
        assert run_stage(stage, tmp_path / "other") is None
    assert run_stage(stage | {"micro_batch_size": 4}, tmp_path / "other") is not None
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    [resumed] = events(tmp_path / "other", "resumed")
    assert resumed["exactness"] == "approximate"
    assert ["micro_batch_size was 2" in reason for reason in resumed["reasons"]] == [True]

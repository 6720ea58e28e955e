"""Goal: the memory of this host that a stage can use includes what its own run already holds."""

from types import SimpleNamespace

import psutil
import pytest

from trainers.configs import TrainingConfig, parse_stage
from trainers.preflight.memory.host import local_host


def test_what_a_run_holds_itself_is_a_part_of_the_memory_that_it_can_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The weights are loaded before recomputation is chosen.
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 30))
    config = parse_stage({"stage": "sft", "base": "org/base", "dataset": "rows", "queue": "cpu"})
    assert isinstance(config, TrainingConfig)
    assert local_host(config).memory_bytes > (1 << 30) + (100 << 20)


def test_the_memory_of_an_engine_that_already_runs_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    stage = {"stage": "grpo", "base": "org/base", "dataset": "rows", "generation": "hf", "queue": "cpu"}
    config = parse_stage(stage | {"rewards": [{"kind": "correctness"}]})
    assert isinstance(config, TrainingConfig)
    assert local_host(config).memory_bytes > 1 << 30

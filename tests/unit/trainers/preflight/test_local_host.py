"""Goal: the memory that a stage can use is what is free and what its own run holds, alike for all ranks."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch.distributed import HashStore

from trainers.configs import TrainingConfig, parse_stage
from trainers.preflight.memory.host import agree_on_least, local_host

GB = 10**9


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


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate four GPUs with 80 GB, of which another program holds 50 GB of the second."""
    free = [79, 30, 79, 79]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free[number] * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda number: 0)


@pytest.mark.parametrize(("devices", "expected"), [(1, 79), (2, 30), (4, 30)])
def test_of_several_gpus_the_one_with_the_least_free_memory_decides(
    gpus: None, devices: int, expected: int
) -> None:
    stage = {"stage": "sft", "base": "org/base", "dataset": "rows", "devices": devices}
    config = parse_stage(stage)
    assert isinstance(config, TrainingConfig)
    host = local_host(config)
    assert (host.memory_bytes, host.devices) == (expected * GB, 4)


@pytest.mark.parametrize(("rank", "expected"), [(0, 79), (1, 30)])
def test_a_rank_measures_its_own_gpu(
    gpus: None, rank: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))
    config = parse_stage({"stage": "sft", "base": "org/base", "dataset": "rows", "devices": 2})
    assert isinstance(config, TrainingConfig)
    assert local_host(config).memory_bytes == expected * GB


def test_all_ranks_choose_for_the_one_with_the_least_memory() -> None:
    store, values = HashStore(), [79, 30, 64]
    with ThreadPoolExecutor(len(values)) as ranks:
        agreed = ranks.map(lambda rank: agree_on_least(store, rank, len(values), values[rank]), range(3))
    assert list(agreed) == [30, 30, 30]

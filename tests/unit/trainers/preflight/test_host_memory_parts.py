"""Goal: the memory of a host with GPUs does not grow with their number, but for their programs."""

import pytest

from trainers.configs import TrainingConfig, parse_stage
from trainers.configs.training import Parallelism
from trainers.preflight.memory.host import count_host_bytes
from trainers.preflight.memory.shape import BF16_BYTES, MemorySettings, ModelShape

SHAPE = ModelShape(
    layers=2,
    hidden=8,
    intermediate=16,
    heads=2,
    query=8,
    key_value=4,
    vocabulary=64,
    linear_parameters=900,
    other_parameters=100,
    adapter_parameters=10,
    has_fused_attention=True,
)


@pytest.mark.parametrize(
    ("tuning", "parallelism", "base", "checkpoint"),
    [
        ("full", Parallelism.fsdp2, 4000, 12000),
        ("lora", Parallelism.fsdp2, 2000, 0),
        ("full", Parallelism.zero2, 2000, 0),
        ("full", Parallelism.zero3, 0, 0),
        ("lora", Parallelism.ddp, 0, 0),
    ],
)
def test_a_host_needs_the_base_once_for_all_of_its_gpus_and_a_copy_of_the_shards(
    tuning: str, parallelism: Parallelism, base: int, checkpoint: int
) -> None:
    for devices in (2, 8):
        values = {"base": "org/base", "dataset": "rows", "devices": devices, "tuning": {"method": tuning}}
        config = parse_stage({"stage": "sft", "parallelism": parallelism.value, **values})
        assert isinstance(config, TrainingConfig)
        settings = MemorySettings(1, None, False, parallelism, devices)
        parts = count_host_bytes(config, SHAPE, settings, BF16_BYTES)
        assert (parts.get("base", 0), parts.get("checkpoint", 0)) == (base, checkpoint)
        assert parts["needed"] - parts["programs"] == max(base, checkpoint)

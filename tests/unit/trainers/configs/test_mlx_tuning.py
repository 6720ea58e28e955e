"""The settings of 4-bit training with MLX: each is refused where it would have no effect."""

from typing import Any

import pytest
from pydantic import ValidationError

from trainers.configs import parse_stage
from trainers.configs.base import Queue
from trainers.configs.stages.dpo import DpoConfig

STAGE: dict[str, Any] = {"stage": "dpo", "base": "org/base", "dataset": "org/data"}
ROUNDED = {"method": "lora", "quantization": "4bit", "publish_dequantized_base": True}


def parse(**values: Any) -> DpoConfig:
    config = parse_stage(STAGE | values)
    assert isinstance(config, DpoConfig)
    return config


def test_a_stage_that_publishes_its_rounded_base_goes_to_a_mac() -> None:
    assert parse(tuning=ROUNDED).suitable_queues == (Queue.mlx,)
    assert Queue.mlx in parse().suitable_queues
    assert Queue.mlx not in parse(losses={"aot": 1}).suitable_queues


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"queue": "cuda", "tuning": ROUNDED}, "publish_dequantized_base is a part of MLX's program"),
        ({"backend": "torch", "tuning": ROUNDED}, "publish_dequantized_base is a part of MLX's program"),
        ({"tuning": ROUNDED | {"quantization": "nf4"}}, "needs quantization 4bit"),
        ({"tuning": ROUNDED | {"quantization": None}}, "needs quantization 4bit"),
        ({"queue": "mlx", "losses": {"bco_pair": 1}}, "losses has bco_pair, and MLX has sigmoid"),
    ],
)
def test_a_setting_without_effect_is_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        parse(**values)

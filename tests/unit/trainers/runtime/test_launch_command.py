"""The program of a stage follows from its kind and the library that trains it."""

from pathlib import Path
from typing import Any

import pytest

from trainers.configs import parse_stage
from trainers.runtime.launch_command import build_command

SFT: dict[str, Any] = {"stage": "sft", "base": "org/base", "dataset": "rows"}


@pytest.mark.parametrize(
    ("stage", "module"),
    [
        (SFT, "trainers.sft"),
        (SFT | {"queue": "cuda"}, "trainers.sft"),
        (SFT | {"queue": "mlx"}, "trainers.mlx.sft"),
        (SFT | {"queue": "cpu", "backend": "mlx"}, "trainers.mlx.sft"),
        (SFT | {"queue": "mlx", "stage": "dpo"}, "trainers.mlx.dpo"),
        (SFT | {"queue": "cpu", "stage": "kto"}, "trainers.kto"),
    ],
)
def test_the_program_is_that_of_the_backend(stage: dict[str, Any], module: str) -> None:
    command = build_command("python", parse_stage(stage), Path("config.json"), Path("run"))
    assert command[:3] == ["python", "-m", module]

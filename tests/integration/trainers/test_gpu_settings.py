"""Goal: a program chooses what a GPU computes natively, and one GPU where its stage has one.

No GPU is needed: torch's own questions to the driver get the answers of the named one.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import OFFLINE, ROOT
from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import Precision
from trainers.modeling.load import forward_dtype, pick_precision
from trainers.runtime.errors import DeviceUnavailable
from trainers.runtime.launch_command import sees_too_many_gpus

CPU, GPU = torch.device("cpu"), torch.device("cuda")
# Run before a program, as a host with two GPUs on which the second start sees one.
TWO_GPUS = """
import os, runpy, sys, torch
torch.cuda.device_count = lambda: 1 if "CUDA_VISIBLE_DEVICES" in os.environ else 2
print("visible", os.environ.get("CUDA_VISIBLE_DEVICES"), file=sys.stderr)
"""


@pytest.fixture(params=[True, False], ids=["bf16", "emulated"])
def has_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    native = bool(request.param)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
    return native


def test_auto_is_the_16_bit_format_that_the_gpu_computes(has_bf16: bool) -> None:
    precision = pick_precision(Precision.auto, GPU)
    assert precision is (Precision.bf16 if has_bf16 else Precision.fp16)
    assert forward_dtype(precision) is (torch.bfloat16 if has_bf16 else torch.float16)
    assert pick_precision(Precision.fp16, GPU) is Precision.fp16
    assert pick_precision(Precision.fp32, GPU) is Precision.fp32


def test_emulated_bf16_is_refused(has_bf16: bool) -> None:
    if has_bf16:
        assert pick_precision(Precision.bf16, GPU) is Precision.bf16
    else:
        with pytest.raises(DeviceUnavailable, match="bf16, which the device Tesla T4"):
            pick_precision(Precision.bf16, GPU)


@pytest.mark.parametrize("precision", [Precision.bf16, Precision.fp16])
def test_a_cpu_trains_in_fp32_alone(precision: Precision) -> None:
    with pytest.raises(DeviceUnavailable, match=f"precision is {precision}"):
        pick_precision(precision, CPU)


@pytest.mark.parametrize(
    ("changes", "environment", "count", "expected"),
    [
        ({}, {}, 2, True),
        ({}, {}, 1, False),
        ({}, {"CUDA_VISIBLE_DEVICES": "0,1"}, 2, False),
        ({"devices": 2}, {"WORLD_SIZE": "2"}, 2, False),
        ({"queue": "cpu"}, {}, 2, False),
    ],
    ids=str,
)
def test_a_stage_of_one_device_that_sees_several_gpus_is_found(
    changes: dict[str, Any], environment: dict[str, str], count: int, expected: bool
) -> None:
    config = SftConfig.model_validate({"base": "b", "dataset": "d", **changes})
    assert sees_too_many_gpus(config, environment, count) is expected


@pytest.mark.slow
def test_a_program_starts_again_with_one_gpu(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(TWO_GPUS)
    config = tmp_path / "config.yaml"
    config.write_text("{stage: sft, base: /missing, dataset: /missing.jsonl}")
    environment = os.environ | OFFLINE | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [
        sys.executable,
        "-m",
        "trainers.sft",
        "--config",
        str(config),
        "--run-dir",
        str(tmp_path / "r"),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert [line for line in done.stderr.splitlines() if line.startswith("visible")] == [
        "visible None",
        "visible 0",
    ]
    assert "so GPU 0 is used" in done.stderr
    assert "/missing" in done.stderr

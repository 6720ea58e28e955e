"""Goal: a plan counts what training will hold, without loading weights, and a run reports what it held."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model

from tests.integration.trainers.conftest import Programs
from tests.integration.trainers.stages import run_stage
from trainers.configs.stages.sft import SftConfig
from trainers.configs.training import Precision
from trainers.modeling.load import count_parameters
from trainers.runtime.events import EventWriter
from trainers.sft import plan
from trainers.training.policy import build_empty_policy, load_policy, new_adapter_config

Stage = dict[str, Any]


@pytest.mark.parametrize("kind", ["lora", "full", "adapter"])
def test_parameters_are_counted_as_those_of_the_loaded_model(
    short_sft: Stage, adapted: dict[str, str], kind: str, tmp_path: Path
) -> None:
    changes: Stage = {"base": adapted} if kind == "adapter" else {"tuning": {"method": kind}}
    config = SftConfig.model_validate(short_sft | changes)
    loaded = load_policy(config, Precision.fp32, tmp_path, EventWriter(None))
    adapter = new_adapter_config(config, loaded)
    expected = count_parameters(loaded if adapter is None else get_peft_model(loaded, adapter))
    empty = build_empty_policy(config)
    assert count_parameters(empty) == expected
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}


def test_a_plan_is_for_the_devices_of_its_config(short_sft: Stage) -> None:
    config = SftConfig.model_validate(short_sft | {"devices": 2, "batch_size": 16, "micro_batch_size": 2})
    assert plan(config)["gradient_accumulation_steps"] == 4


def test_a_result_contains_the_peak_of_the_process(short_sft: Stage, tmp_path: Path) -> None:
    result = run_stage(short_sft | {"max_steps": 1}, tmp_path)
    assert result is not None
    # Torch alone takes this much.
    assert result["metrics"]["peak_resident_bytes"] > 100 << 20


@pytest.mark.slow
def test_a_probe_of_two_devices_measures_one_of_them(
    short_sft: Stage, programs: Programs, tmp_path: Path
) -> None:
    target = short_sft | {"stage": "sft", "devices": 2, "batch_size": 8, "micro_batch_size": 2}
    status, _, err = programs.run(
        "trainers.preflight", {"stage": "preflight", "target": target, "probe_steps": 3}, tmp_path
    )
    assert status == 0, err
    probe = json.loads((tmp_path / "result.json").read_text())["probe"]
    assert probe["peak_measure"] == "peak_resident_bytes"
    # Torch's launcher and the other rank have memory of their own.
    assert 100 << 20 < probe["peak_bytes"] < 1 << 30

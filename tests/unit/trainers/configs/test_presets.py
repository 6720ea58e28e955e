"""Presets are defaults for the fields that a stage does not set."""

from typing import Any

import pytest
from pydantic import ValidationError

from trainers.configs import GrpoConfig, LoraTuning, SftConfig, StageKind, TrainingConfig, parse_stage
from trainers.configs.presets import load_presets

REWARDS = [{"kind": "correctness"}]
HARDWARE = [name for name, preset in load_presets().items() if preset.kind == "hardware"]
FAMILIES = [name for name, preset in load_presets().items() if preset.kind == "family"]


@pytest.mark.parametrize("stage", [kind for kind in StageKind if kind.trains])
@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("family", FAMILIES)
def test_hardware_and_family_together_make_a_whole_config(stage: str, hardware: str, family: str) -> None:
    required: dict[str, Any] = {"grpo": {"rewards": REWARDS}, "distill": {"teacher": "org/teacher"}}
    config = parse_stage(
        {"stage": stage, "preset": [hardware, family], "dataset": "rows"} | required.get(stage, {})
    )
    assert isinstance(config, TrainingConfig)
    assert config.base == load_presets()[family].training["base"]
    assert config.micro_batch_size is not None
    assert config.batch_size % config.micro_batch_size == 0


def test_every_documented_preset_exists() -> None:
    macs = {"mac-16gb", "mac-24gb", "mac-64gb", "mac-128gb"}
    gpus = {"gpu-24gb", "gpu-24gb-nf4", "gpu-80gb", "gpus-8x80gb", "gpus-8x80gb-70b", "gpus-8x80gb-lora"}
    assert {*HARDWARE} == macs | gpus | {"cpu-tiny"}
    assert {*FAMILIES} == {"qwen", "qwen3.5", "llama", "mistral", "mistral3", "phi", "gemma", "gemma4"}


def test_rows_of_recurrent_layers_are_not_packed() -> None:
    config = parse_stage({"stage": "sft", "preset": ["gpu-24gb", "qwen3.5"], "dataset": "rows"})
    assert isinstance(config, SftConfig) and not config.packing


def test_a_stage_overrides_its_preset() -> None:
    values = {"stage": "sft", "preset": "gpu-24gb-nf4", "base": "b", "dataset": "d", "tuning": {"rank": 4}}
    config = SftConfig.model_validate(values | {"max_length": 512})
    assert isinstance(config.tuning, LoraTuning)
    assert (config.tuning.rank, config.tuning.quantization, config.max_length) == (4, "nf4", 512)


def test_another_method_of_tuning_replaces_that_of_the_preset() -> None:
    values = {"stage": "sft", "preset": "gpu-24gb", "base": "b", "dataset": "d", "tuning": {"method": "full"}}
    config = SftConfig.model_validate(values)
    assert (config.tuning.method, config.learning_rate) == ("full", 2e-5)


def test_fields_for_one_kind_of_stage_do_not_apply_to_others() -> None:
    values = {"preset": "gpu-24gb", "base": "b", "dataset": "d", "rewards": REWARDS}
    assert GrpoConfig.model_validate(values).max_completion_length == 512


def test_a_stored_config_means_the_same_when_it_is_read_again() -> None:
    config = SftConfig.model_validate({"preset": ["gpu-80gb", "phi"], "dataset": "d", "batch_size": 4})
    assert SftConfig.model_validate(config.model_dump(mode="json")) == config


def test_the_error_of_a_misspelt_preset_suggests_a_similar_name() -> None:
    with pytest.raises(ValidationError, match="there is no preset 'gpu-24g'; did you mean 'gpu-24gb'"):
        parse_stage({"stage": "sft", "preset": "gpu-24g", "base": "b", "dataset": "d"})

"""Defaults and validation of stage configs, and the expansion of variables in YAML but not in JSON."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from trainers.configs import GrpoConfig, Queue, SftConfig, StageKind, parse_stage
from trainers.configs.resume_guarantee import get_resume_guarantee
from trainers.configs.stage_config import load_stage

SFT = {"stage": "sft", "base": "org/model", "dataset": "rows.jsonl"}


def sft(**values: Any) -> SftConfig:
    config = parse_stage(SFT | values)
    assert isinstance(config, SftConfig)
    return config


def test_the_default_learning_rate_depends_on_the_method_of_tuning() -> None:
    assert sft().learning_rate == 2e-4
    assert sft(tuning={"method": "full"}).learning_rate == 2e-5
    assert sft(tuning={"method": "full"}, learning_rate=1e-3).learning_rate == 1e-3


@pytest.mark.parametrize(("batch_size", "micro"), [(16, 8), (12, 6), (7, 7), (13, 1), (1, 1)])
def test_micro_batch_divides_the_batch(batch_size: int, micro: int) -> None:
    assert sft(batch_size=batch_size).micro_batch_size == micro


@pytest.mark.parametrize(("devices", "micro"), [(1, 8), (2, 8), (4, 4), (8, 2), (16, 1)])
def test_the_default_micro_batch_leaves_every_device_the_same_rows(devices: int, micro: int) -> None:
    assert sft(devices=devices).micro_batch_size == micro


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"devices": 8, "micro_batch_size": 8}, "micro_batch_size 8 times devices 8"),
        ({"devices": 3}, "batch_size 16 is not a multiple of devices 3; .* set it to 15 or 18"),
        ({"devices": 32}, "batch_size 16 is not a multiple of devices 32; .* set it to 32"),
        ({"devices": 4, "nodes": 3}, "batch_size 16 is not a multiple of devices 4 times nodes 3"),
    ],
)
def test_a_batch_that_devices_cannot_share_is_rejected(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        sft(**values)


def test_a_misspelt_field_is_an_error_that_names_it() -> None:
    with pytest.raises(ValidationError, match="learning_rat\n"):
        sft(learning_rat=1e-3)


def test_a_micro_batch_that_does_not_divide_the_batch_is_rejected() -> None:
    with pytest.raises(ValidationError, match="batch_size 16 is not a multiple of micro_batch_size 5"):
        sft(micro_batch_size=5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_steps", "9"), ("max_steps", 9.0), ("max_steps", True), ("learning_rate", "1e-3"), ("packing", 1)],
)
def test_a_number_or_boolean_of_another_type_is_rejected(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        sft(**{field: value})


@pytest.mark.parametrize(("text", "rate"), [("2e-4", 2e-4), ("1E-3", 1e-3), (".5e-3", 5e-4), ("1", 1.0)])
def test_yaml_numbers_and_variables_may_be_in_scientific_notation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, rate: float
) -> None:
    monkeypatch.setenv("RATE", text)
    monkeypatch.setenv("STEPS", "400")
    for value in (text, "${RATE}"):
        path = tmp_path / "sft.yaml"
        path.write_text(f"stage: sft\nbase: b\ndataset: d\nlearning_rate: {value}\nmax_steps: ${{STEPS}}\n")
        config = load_stage(path)
        assert isinstance(config, SftConfig)
        assert (config.learning_rate, config.max_steps) == (rate, 400)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_number_that_json_cannot_represent_is_rejected(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        sft(max_grad_norm=value)


def test_resolved_config_reads_back_as_itself(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(sft(tuning={"method": "lora", "rank": 4}).model_dump_json())
    assert load_stage(path) == sft(tuning={"method": "lora", "rank": 4})


def test_yaml_expands_variables_and_keeps_its_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE", "0.003")
    monkeypatch.setenv("FOLDER", "{stage: other}")
    path = tmp_path / "sft.yaml"
    path.write_text("stage: sft\nbase: ${FOLDER}\ndataset: a/${NAME:-rows}.jsonl\nlearning_rate: ${RATE}\n")
    config = load_stage(path)
    assert isinstance(config, SftConfig)
    assert (config.base, config.dataset, config.learning_rate) == ("{stage: other}", "a/rows.jsonl", 0.003)


def test_the_error_of_an_unset_variable_names_it(tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text("stage: sft\nbase: ${TUNESMITH_UNSET}\ndataset: rows.jsonl\n")
    with pytest.raises(ValueError, match=r"\$\{TUNESMITH_UNSET\}, which is not set"):
        load_stage(path)


def test_json_of_a_service_cannot_read_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SFT | {"base": "${HF_TOKEN}"}))
    config = load_stage(path)
    assert isinstance(config, SftConfig)
    assert config.base == "${HF_TOKEN}"


VLLM = {"generation": "vllm"}


@pytest.mark.parametrize(
    ("stage", "queue", "config", "reasons"),
    [
        ("sft", Queue.cpu, {}, []),
        ("dpo", Queue.cuda, {}, ["CUDA kernels"]),
        ("grpo", Queue.cpu, {"generation": "transformers"}, []),
        ("grpo", Queue.cpu, VLLM, ["same seeds"]),
        ("grpo", Queue.cuda, VLLM, ["CUDA kernels", "same seeds"]),
        ("sft", Queue.mlx, {}, ["Apple's GPUs"]),
    ],
)
def test_an_approximate_resume_guarantee_has_reasons(
    stage: str, queue: Queue, config: dict[str, str], reasons: list[str]
) -> None:
    rewards = {"rewards": [{"kind": "correctness"}]} if stage == "grpo" else {}
    values = {"stage": stage, "base": "org/base", "dataset": "rows", **rewards, **config}
    found = get_resume_guarantee(parse_stage(values), queue)
    assert found is not None
    assert found.exactness == ("approximate" if reasons else "exact")
    assert all(part in reason for part, reason in zip(reasons, found.reasons, strict=True))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            {"tuning": {"method": "full"}},
            "new adapters, but no new base: set tuning.method to lora, or",
        ),
        ({"tuning": {"quantization": "nf4"}}, "the base that is not quantized: remove it"),
        ({"tuning": {"dropout": 0.1}}, "every importance ratio would be wrong: set it to 0"),
        ({"tuning": {"dora": True}}, "cannot load adapters with tuning.dora"),
        ({"tuning": {"rank": 1024}}, "up to rank 512, not tuning.rank 1024"),
        ({"devices": 2, "parallelism": "fsdp2"}, "whole copy of the base .* use ddp or zero2"),
        ({"nodes": 2}, "generation vllm serves the processes of one host"),
        ({"vllm_mode": "colocate"}, "There is no such field"),
        ({"vllm_server_url": "http://h"}, "There is no such field"),
    ],
)
def test_an_engine_generates_only_what_it_can_follow(values: dict[str, object], reason: str) -> None:
    grpo = {"stage": "grpo", "base": "org/base", "dataset": "rows", "rewards": [{"kind": "correctness"}]}
    config = parse_stage(grpo | VLLM)
    assert isinstance(config, GrpoConfig)
    assert (config.capability, config.vllm_memory_share) == ("vllm", 0.3)
    with pytest.raises(ValidationError, match=reason):
        parse_stage(grpo | VLLM | values)


@pytest.mark.parametrize("kind", ["generate", "evaluate"])
def test_completions_resume_approximately_because_batches_differ(kind: str) -> None:
    config = parse_stage({"stage": kind, "model": "org/base", "dataset": "rows"})
    found = get_resume_guarantee(config, Queue.cpu)
    assert found is not None
    assert found.exactness == "approximate"
    assert "batches" in found.reasons[0]


def test_a_stage_without_checkpoints_is_not_resumed() -> None:
    config = parse_stage({"stage": "merge", "model": "org/base"})
    assert get_resume_guarantee(config, Queue.cpu) is None


@pytest.mark.parametrize("kind", list(StageKind))
def test_every_field_of_a_stage_has_a_description(kind: StageKind) -> None:
    schema = kind.stage.config.model_json_schema()
    definitions = schema.pop("$defs", {})
    for name, model in {kind.value: schema, **definitions}.items():
        fields = model.get("properties", {}).items()
        assert [f"{name}.{field}" for field, values in fields if not values.get("description")] == []


def test_a_stage_is_registered_under_the_kind_in_its_config() -> None:
    for kind in StageKind:
        # A name may end in `_`, where the value is a keyword of Python.
        assert kind.name.rstrip("_") == kind.value == kind.stage.config.model_fields["stage"].default


def test_the_schema_of_a_config_does_not_grow_with_its_uses() -> None:
    def count_wraps() -> int:
        return repr(SftConfig.__pydantic_core_schema__).count("function-wrap")

    before = count_wraps()
    for _ in range(3):
        assert TypeAdapter(list[SftConfig]).json_schema()
    assert count_wraps() == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "adamw_8bit", "parallelism": "fsdp2", "devices": 2}, "cannot be sharded"),
        ({"optimizer": "adafactor", "parallelism": "zero3", "devices": 2}, "cannot be sharded"),
        ({"optimizer": "adamw_8bit", "queue": "mlx"}, "is an implementation of torch"),
        ({"compile": True, "queue": "mlx"}, "compile is a part of torch"),
        (
            {"compile": True, "parallelism": "zero2", "devices": 2},
            "compile is not available with parallelism",
        ),
        ({"compile": True, "kernels": "liger"}, "omit one of them"),
        ({"kernels": {"folder": "/k"}, "queue": "mlx"}, "kernels are for the layers of torch"),
        ({"optimizer": "sgd"}, "'adamw', 'adamw_8bit', 'paged_adamw_8bit' or 'adafactor'"),
    ],
)
def test_an_optimizer_that_cannot_run_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse_stage({"stage": "sft", "base": "a/b", "dataset": "rows"} | values)

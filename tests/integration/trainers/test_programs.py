"""Goal: a program that fails writes an error that names the cause; a dry run writes nothing."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.integration.trainers.conftest import Programs
from tests.integration.trainers.stages import run_stage
from trainers.configs.base import AdaptedModel, Queue, StageOutput
from trainers.configs.training import Precision
from trainers.modeling.load import (
    AdapterUnreadable,
    load_model,
    load_tokenizer,
    pick_device,
    pick_precision,
)
from trainers.modeling.model_files import BaseModelNotFound
from trainers.rendering.examples.sft import load_examples
from trainers.runtime import run_dir as files
from trainers.runtime.errors import (
    ConfigInvalid,
    DatasetFileNotFound,
    DatasetInvalid,
    DeviceUnavailable,
)
from trainers.training.diagnosis.non_finite import LossNotFinite


def sft(base: Path | dict[str, str], dataset: str, **values: Any) -> dict[str, Any]:
    reference = str(base) if isinstance(base, Path) else base
    return {"stage": "sft", "base": reference, "dataset": dataset, "max_steps": 2, "batch_size": 4} | values


def test_dry_run_prints_the_resolved_numbers_and_writes_nothing(
    programs: Programs, starter: Path, training_rows: str, tmp_path: Path
) -> None:
    config = sft(starter, training_rows, max_steps=None, epochs=1.5, batch_size=16, micro_batch_size=4)
    status, out, err = programs.run("trainers.sft", config, tmp_path, "--dry-run")
    assert status == 0, err
    plan = json.loads(out)
    expected = {
        "rows": 158,
        "steps": 15,
        "gradient_accumulation_steps": 4,
        "device": "cpu",
        "precision": "fp32",
        "resume_guarantee": {"exactness": "exact", "reasons": []},
    }
    assert expected.items() <= plan.items()
    assert 0 < plan["loss_tokens"] < plan["tokens"]
    assert 0 < plan["trainable_parameters"] < plan["parameters"]
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_loss_that_is_not_finite_ends_the_run_with_its_name(
    starter: Path, training_rows: str, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(starter, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    run_dir = tmp_path / "run"
    with pytest.raises(LossNotFinite, match="at step 1"):
        run_stage(sft(broken, training_rows, log_every_steps=1), run_dir)
    assert not (run_dir / "result.json").exists()
    assert files.last_complete_checkpoint(run_dir) is None


def test_full_disk_is_named(programs: Programs, starter: Path, training_rows: str, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    status, _, err = programs.run("trainers.sft", sft(starter, training_rows), tmp_path)
    assert status == 1
    assert "Traceback" in err
    error = files.read_error(tmp_path)
    assert error is not None
    assert error["code"] == "disk_full"


def test_a_command_without_a_run_directory_is_invalid(programs: Programs) -> None:
    process = programs.popen([sys.executable, "-m", "trainers.prepare", "--config", "prepare.yaml"])
    _, err = process.communicate()
    assert process.returncode == 2
    assert "--run-dir is required unless --dry-run is given" in err


def test_config_of_another_stage_is_refused(programs: Programs, tmp_path: Path) -> None:
    status, _, _ = programs.run("trainers.prepare", sft(Path("none"), "none"), tmp_path)
    error = files.read_error(tmp_path)
    assert (status, error is not None and error["code"]) == (1, "config_invalid")


def test_an_invalid_field_is_reported_by_its_path_without_a_traceback(
    programs: Programs, tmp_path: Path
) -> None:
    config = sft(Path("none"), "none", tuning={"method": "lora", "rank": 0})
    status, _, log = programs.run("trainers.prepare", config, tmp_path)
    error = files.read_error(tmp_path)
    assert (status, error and error["code"]) == (1, "config_invalid")
    assert "Traceback" not in log and "pydantic" not in log
    assert error is not None and "tuning.lora.rank: " in error["message"]


@pytest.mark.parametrize(
    "source", ["/no/such/model", "./model", "../model", "a/b/c", "no-such-org/no-such-model"]
)
def test_a_model_that_does_not_exist_is_not_found(source: str) -> None:
    with pytest.raises(BaseModelNotFound, match=source):
        load_tokenizer(source)
    with pytest.raises(BaseModelNotFound, match=source):
        load_model(source, dtype="auto")


def test_folder_without_a_model_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(BaseModelNotFound, match=r"no config\.json"):
        load_tokenizer(str(tmp_path))


def test_pickled_weights_are_not_loaded(starter: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(starter, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelNotFound, match="safetensors"):
        load_model(str(folder), dtype="auto")


def test_adapter_is_unreadable_whatever_is_wrong_with_it(starter: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    reference = AdaptedModel(base=str(starter), adapter=str(adapter))

    def expect_refusal(why: str) -> None:
        with pytest.raises(AdapterUnreadable, match=why):
            load_model(reference, dtype="auto")

    expect_refusal("does not exist")
    adapter.mkdir()
    expect_refusal(r"no adapter_config\.json")
    (adapter / "adapter_config.json").write_text("{")
    expect_refusal(r"no adapter_model\.safetensors")
    weights = load_file(starter / "model.safetensors")
    save_file({"base_model.model.other": weights["model.norm.weight"]}, adapter / "adapter_model.safetensors")
    expect_refusal(str(adapter))
    lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(lora))
    expect_refusal("does not fit .* missing adapter keys")
    (adapter / "adapter_model.safetensors").write_bytes(b"not weights")
    expect_refusal(str(adapter))


def test_missing_hardware_is_named() -> None:
    with pytest.raises(DeviceUnavailable, match="bf16"):
        pick_precision(Precision.bf16, pick_device(Queue.cpu))
    assert pick_precision(Precision.auto, pick_device(Queue.cpu)) is Precision.fp32


def test_stage_output_needs_a_job() -> None:
    with pytest.raises(ConfigInvalid, match="'sft'"):
        load_tokenizer(StageOutput(stage="sft"))


def test_dataset_faults_name_the_row(
    starter: Path, write_rows: Callable[[list[dict[str, Any]]], str], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(starter))
    good = {"question": "2 + 2?", "answer": "#### 4"}

    def expect_refusal(dataset: str, error: type[Exception], why: str, max_length: int = 64) -> None:
        with pytest.raises(error, match=why):
            load_examples(dataset, tokenizer, max_length)

    expect_refusal(str(tmp_path / "none.jsonl"), DatasetFileNotFound, "does not exist")
    expect_refusal(write_rows([good, {"foo": 1}]), DatasetInvalid, "Row 2 .* fields are foo")
    expect_refusal(
        write_rows([good, {"prompt": "a", "chosen": "b", "rejected": "c"}]), DatasetInvalid, "Row 2 .*DPO"
    )
    expect_refusal(write_rows([{"messages": [{"role": "user", "content": "x"}]}]), DatasetInvalid, "Row 1 ")
    expect_refusal(
        write_rows([good]), DatasetInvalid, "No row .* every prompt fills max_length 8", max_length=8
    )
    (tmp_path / "broken.jsonl").write_text(json.dumps(good) + "\n{broken\n")
    expect_refusal(str(tmp_path / "broken.jsonl"), DatasetInvalid, "line 2")

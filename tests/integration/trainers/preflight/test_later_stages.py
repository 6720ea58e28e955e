"""Goal: what would make a later stage fail is found before the first one trains, by the stage's own code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.architectures import find_architecture, write_model
from tests.integration.trainers.preflight.test_findings import CLEAN, codes, pairs
from tests.integration.trainers.stages import run_stage
from trainers.configs import parse_stage
from trainers.configs.stages.preflight import PreflightConfig
from trainers.preflight.__main__ import run as preflight
from trainers.preflight.start.later_stages import LaterStageInvalid, find_faults
from trainers.runtime import run_dir as files
from trainers.runtime.events import EventWriter

Write = Callable[[list[dict[str, Any]]], str]
TRANSLATIONS = [{"prompt": "나는 사과를 보았다.", "completion": "I saw an apple."}] * 2


def evaluation(base: Path, dataset: str, **more: Any) -> dict[str, Any]:
    return {"stage": "evaluate", "name": "score", "model": str(base), "dataset": dataset, **more}


def faults(values: dict[str, Any]) -> str:
    return " ".join(f"{one.code}: {one.message}" for one in find_faults(parse_stage(values)))


def test_a_run_with_a_later_stage_that_would_fail_ends_before_it_trains(
    starter: Path, write_rows: Write, tmp_path: Path
) -> None:
    stage = {"stage": "sft", "base": str(starter), "dataset": write_rows(CLEAN), "max_length": 256}
    later = {"template": None, "stages": [evaluation(starter, write_rows(TRANSLATIONS))]}
    (tmp_path / files.LATER_STAGES).write_text(json.dumps(later))
    with pytest.raises(LaterStageInvalid, match=r"'score' \(evaluate\) would fail\. Row 1 ") as error:
        run_stage(stage, tmp_path)
    assert "no final answer in its reference" in error.value.message
    hint = str(error.value.hint)
    assert "The metrics are " in hint and "maths_exact_match" in hint
    assert hint.endswith("Nothing has been trained yet.")
    assert not (tmp_path / "checkpoints.jsonl").exists()


def test_a_job_whose_later_stages_work_trains(starter: Path, write_rows: Write, tmp_path: Path) -> None:
    rows = write_rows(CLEAN)
    stage = {"stage": "sft", "base": str(starter), "dataset": rows, "max_length": 256, "max_steps": 1}
    deploy = {"stage": "deploy", "model": str(starter), "deployment": "sums"}
    merge = {"stage": "merge", "model": str(starter)}
    dpo = {"stage": "dpo", "base": str(starter), "dataset": write_rows(pairs(CLEAN))}
    generate = {"stage": "generate", "model": str(starter), "dataset": rows}
    later = [evaluation(starter, write_rows(CLEAN[:5])), merge, dpo, generate, deploy]
    (tmp_path / files.LATER_STAGES).write_text(json.dumps({"template": None, "stages": later}))
    assert run_stage(stage, tmp_path) is not None


def test_the_rows_of_a_later_training_stage_are_rendered(starter: Path, write_rows: Write) -> None:
    empty = pairs(CLEAN, rejected="")
    for pair in empty:
        pair["chosen"] = ""
    found = faults({"stage": "dpo", "base": str(starter), "dataset": write_rows(empty)})
    assert "completion_empty" in found


def test_a_prompt_beyond_the_model_is_found(starter: Path, write_rows: Write) -> None:
    rows = [{"question": "one " * 300, "answer": "#### 1"}]
    assert "length_beyond_model" in faults(evaluation(starter, write_rows(rows)))


def test_an_engine_that_cannot_serve_the_architecture_is_found(starter: Path, tmp_path: Path) -> None:
    base = write_model(find_architecture("Qwen 3.5"), starter, tmp_path / "base")
    deploy = {"stage": "deploy", "model": str(base), "deployment": "name"}
    assert "linear_attention layers, which the engine hf cannot batch" in faults(deploy)
    assert faults(deploy | {"engine": "vllm"}) == ""


def test_a_quantized_base_is_not_merged(starter: Path, tmp_path: Path) -> None:
    base = write_model(find_architecture("Llama"), starter, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    assert "is quantized, so an adapter cannot be merged" in faults({"stage": "merge", "model": str(base)})
    # An export merges what an earlier stage has trained; whole weights are only written in other formats.
    export = parse_stage({"stage": "export", "model": str(base)})
    [fault] = find_faults(export, is_trained=True)
    assert "is quantized, so an adapter cannot be merged" in fault.message
    assert list(find_faults(export)) == []


def test_an_import_that_does_not_fit_is_found(starter: Path, adapted: dict[str, str], tmp_path: Path) -> None:
    wider = write_model(find_architecture("Llama"), starter, tmp_path / "wider")
    unfit = {"stage": "import", "model": {"base": str(wider), "adapter": adapted["adapter"]}}
    assert "does not fit the base" in faults(unfit)
    assert "needs no base" in faults({"stage": "import", "model": str(starter), "base": str(starter)})
    assert faults({"stage": "import", "model": adapted}) == ""


@pytest.mark.parametrize("target", ["export", "import"])
def test_a_later_stage_without_rows_is_named(
    target: str, starter: Path, write_rows: Write, tmp_path: Path
) -> None:
    folder = tmp_path / "nowhere"
    stage = {"stage": "sft", "base": str(starter), "dataset": write_rows(CLEAN), "max_length": 256}
    later = {"stage": target, "name": "last", "model": str(folder)}
    (tmp_path / files.LATER_STAGES).write_text(json.dumps({"template": None, "stages": [later]}))
    with pytest.raises(LaterStageInvalid, match=rf"'last' \({target}\) would fail\. .*nowhere"):
        run_stage(stage, tmp_path)


def test_preflight_checks_a_stage_that_does_not_train(
    starter: Path, write_rows: Write, tmp_path: Path
) -> None:
    target = evaluation(starter, write_rows(TRANSLATIONS))
    result = preflight(PreflightConfig.model_validate({"target": target}), tmp_path, EventWriter(None))
    assert (codes(result), result["passed"], result["target"]) == (["dataset_unusable"], False, "evaluate")

"""Training on a mixture of datasets: counts in plan and result, exact resumption, and findings by dataset."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.trainers.conftest import Programs, assert_same_run, kill_at_step
from tests.integration.trainers.stages import run_stage
from trainers import sft
from trainers.configs.stages.sft import SftConfig
from trainers.rendering.cache.folder import RowCache
from trainers.rendering.mixtures import mix_datasets, name_origins
from trainers.rendering.render import read_prompt_completions
from trainers.runtime import program
from trainers.runtime import run_dir as files
from trainers.runtime.errors import DatasetInvalid

WriteRows = Callable[[list[dict[str, Any]]], str]


def test_a_run_on_a_mixture_reports_its_datasets_and_resumes_exactly(
    programs: Programs,
    short_sft: dict[str, Any],
    held_out_rows: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mixture = [{"dataset": short_sft["dataset"], "weight": 3}, {"dataset": held_out_rows, "rows": 50}]
    config = short_sft | {"dataset": mixture, "max_steps": 12, "save_every_steps": 4}
    mixed, parts = mix_datasets(SftConfig.model_validate(config), RowCache(tmp_path / "cache"))
    assert [(part.file_rows, part.rows, part.repeats) for part in parts] == [
        (158, 158, None),
        (40, 50, "each of 40 rows once, and 10 of them once more"),
    ]
    run_stage(mixed.model_dump(mode="json"), tmp_path / "whole")
    kill_at_step(programs, "trainers.sft", config, tmp_path / "killed", 6)
    status, _, err = programs.run("trainers.sft", config, tmp_path / "killed")
    assert status == 0, err
    assert_same_run(tmp_path / "killed", tmp_path / "whole", "adapter_model.safetensors")
    result = files.read_result(tmp_path / "killed")
    assert result is not None and result["mixture"] == [part.model_dump() for part in parts]
    capsys.readouterr()
    program._print_plan(SftConfig, tmp_path / "killed" / "config.json", sft.plan)
    planned = json.loads(capsys.readouterr().out)
    assert (planned["rows"], planned["mixture"]) == (208, result["mixture"])


def test_a_finding_names_the_line_of_the_dataset(
    short_sft: dict[str, Any], write_rows: WriteRows, tmp_path: Path
) -> None:
    empty = write_rows([{"question": "1 + 1?", "answer": "2"}, {"question": "2 + 2?", "answer": " "}])
    mixture = [{"dataset": short_sft["dataset"]}, {"dataset": empty}]
    config = SftConfig.model_validate(short_sft | {"dataset": mixture, "max_steps": 1, "preflight": "warn"})
    mixed, _ = mix_datasets(config, RowCache(tmp_path / "cache"))
    run_stage(mixed.model_dump(mode="json"), tmp_path / "run")
    found = files.read_json(tmp_path / "run" / "preflight.json")
    assert found is not None
    (one,) = (one for one in found["findings"] if one["code"] == "completion_empty")
    assert one["examples"][0]["text"].startswith("line 2 of dataset 2 of the mixture: ")


def test_a_dataset_under_two_names_is_refused(short_sft: dict[str, Any], tmp_path: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(Path(short_sft["dataset"]).read_bytes())
    mixture = [{"dataset": short_sft["dataset"]}, {"dataset": str(copy)}]
    with pytest.raises(DatasetInvalid, match="Datasets 1 and 2 of the mixture have the same rows"):
        mix_datasets(SftConfig.model_validate(short_sft | {"dataset": mixture}), RowCache(tmp_path / "cache"))


def test_an_error_in_a_row_names_the_line_of_the_dataset(
    write_rows: Callable[[list[dict[str, Any]]], str], tmp_path: Path
) -> None:
    right = write_rows([{"prompt": f"{n}?", "completion": str(n)} for n in range(3)])
    wrong = write_rows([{"prompt": "3?", "completion": "3"}, {"prompt": "4?"}])
    config = SftConfig.model_validate(
        {"stage": "sft", "base": "none", "dataset": [{"dataset": right}, {"dataset": wrong}]}
    )
    mixed, _ = mix_datasets(config, RowCache(tmp_path))
    message = r"Row \d \(line 2 of dataset 2 of the mixture\) has no known format"
    with pytest.raises(DatasetInvalid) as raised, name_origins(mixed):
        list(read_prompt_completions(mixed.dataset))
    assert re.match(message, raised.value.message)

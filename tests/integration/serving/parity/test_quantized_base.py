"""Goal: the gap of a 4-bit base is measured when an adapter is published, and expected when it is served.

Method: one short run with MLX; the published base is then compared by torch, as the parity check does.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from serving.parity.__main__ import find_quantized_base
from serving.parity.compare import ParityReport
from serving.parity.quantization import ROUNDING, compare_training
from serving.parity.reference import ReferenceModel
from tests.integration.trainers.stages import run_stage
from trainers.configs.base import AdaptedModel
from trainers.configs.training import Precision
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.modeling.load import ModelUnsupported
from trainers.modeling.model_source import open_adapter
from trainers.runtime import run_dir as files
from workers.outputs.fine_tuned import MODEL_FILES

pytest.importorskip("mlx_lm")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def trained(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the run directory and the result of SFT on a 4-bit base."""
    folder = tmp_path_factory.mktemp("4bit")
    rows = [dict(row) for row in generate_problems(32, ProblemSplit.train, seed=1)]
    files.append_lines(folder / "rows.jsonl", rows)
    tuning = {"method": "lora", "rank": 4, "alpha": 8, "quantization": "4bit"}
    stage = {"stage": "sft", "base": str(starter), "dataset": str(folder / "rows.jsonl"), "tuning": tuning}
    more = {"backend": "mlx", "max_steps": 4, "batch_size": 8, "learning_rate": 5e-3, "preflight": "off"}
    more |= {"save_every_steps": 2, "keep_checkpoints": 2}
    result = run_stage(stage | more, folder / "run")
    files.write_json(folder / "run" / "stage.json", stage | more)
    assert result is not None
    return folder / "run", result


@pytest.fixture(scope="module")
def dequantized(trained: tuple[Path, dict[str, Any]]) -> Path:
    """Return the run directory of the same run with its base."""
    run_dir = trained[0].with_name("dequantized")
    stage = files.read_json(trained[0] / "stage.json")
    assert stage is not None
    stage["tuning"]["publish_dequantized_base"] = True
    result = run_stage(stage, run_dir)
    assert result is not None and result["model"]["base_path"] == "dequantized_base"
    assert result["quantized_base"]["sha256"] == trained[1]["quantized_base"]["sha256"]
    assert result["quantized_base"]["gap"]["max"] < 1e-5
    return run_dir


def compare(base: Path, adapter: Path) -> ParityReport:
    report, record = ParityReport(passed=True), find_quantized_base(str(adapter))
    assert record is not None
    compare_training(ReferenceModel(AdaptedModel(base=str(base), adapter=str(adapter))), record, report)
    return report


def test_the_gap_is_stated_with_the_result_and_found_again_by_torch(
    trained: tuple[Path, dict[str, Any]], starter: Path
) -> None:
    run_dir, result = trained
    stated = result["quantized_base"]
    assert (stated["format"], stated["bits"], stated["group_size"]) == ("affine", 4, 64)
    assert stated["gap"]["mean"] > 0.01 and "probes" not in stated
    report = compare(starter, run_dir / "model")
    assert report.passed and report.quantization is not None
    for name in ("mean", "max"):
        assert report.quantization["found"][name] == pytest.approx(stated["gap"][name], abs=1e-4)
    # No row of the data is published with the adapter, but prompts that are the same everywhere.
    record = find_quantized_base(str(run_dir / "model"))
    assert record is not None and len(record.probes) == 4


def test_the_base_that_is_published_with_the_adapter_is_the_one_that_was_trained_on(
    dequantized: Path, starter: Path
) -> None:
    base = dequantized / "dequantized_base"
    report = compare(base, dequantized / "model")
    assert report.passed and report.quantization is not None
    assert report.quantization["found"]["max"] < 1e-4
    # On the original base, the same adapter is not what its record says.
    assert not compare(starter, dequantized / "model").passed


def test_a_base_that_mlx_lm_has_quantized_is_published_in_a_form_that_every_engine_loads(
    trained: tuple[Path, dict[str, Any]], starter: Path, tmp_path: Path
) -> None:
    convert = pytest.importorskip("mlx_lm").convert
    convert(str(starter), str(tmp_path / "4bit"), quantize=True)
    stage = files.read_json(trained[0] / "stage.json")
    assert stage is not None
    stage["base"] = str(tmp_path / "4bit")
    with pytest.raises(ModelUnsupported, match="which no other engine loads"):
        run_stage(stage, tmp_path / "refused")
    with pytest.raises(ModelUnsupported, match="format of mlx-lm, which torch does not read"):
        run_stage(stage | {"backend": "torch"}, tmp_path / "torch")
    stage["tuning"]["publish_dequantized_base"] = True
    result = run_stage(stage, tmp_path / "run")
    assert result is not None and result["quantized_base"]["bits"] == 4
    # The checkpoints are adapters of the published base too.
    checkpoint = tmp_path / "run" / files.checkpoints(tmp_path / "run")[0].path
    for adapter in (tmp_path / "run" / "model", checkpoint):
        report = compare(tmp_path / "run" / "dequantized_base", adapter)
        assert report.passed and report.quantization is not None
        assert report.quantization["found"]["max"] < 1e-4


def test_a_record_of_any_precision_has_a_tolerance() -> None:
    assert set(ROUNDING) == set(Precision) - {Precision.auto}


def test_each_checkpoint_states_the_gap_of_its_own_adapter(
    trained: tuple[Path, dict[str, Any]], starter: Path
) -> None:
    run_dir = trained[0]
    first, last = (run_dir / line.path for line in files.checkpoints(run_dir))
    report = compare(starter, first)
    assert report.passed and report.quantization is not None
    expected = report.quantization["expected"]
    assert report.quantization["found"]["mean"] == pytest.approx(expected["mean"], abs=1e-4)
    records = [find_quantized_base(str(folder)) for folder in (first, last, run_dir / "model")]
    assert records[0] != records[1] == records[2]


def test_an_adapter_that_was_changed_since_is_not_the_one_that_was_trained(
    trained: tuple[Path, dict[str, Any]], starter: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(trained[0] / "model", tmp_path / "changed"))
    weights = load_file(changed / WEIGHTS)
    scaled = {name: weight * (5 if "lora_B" in name else 1) for name, weight in weights.items()}
    save_file(scaled, changed / WEIGHTS)
    report = compare(starter, changed)
    assert not report.passed and report.difference is not None
    assert report.difference.kind == "quantization"
    assert "on 4-bit weights" in report.difference.message


def test_the_record_stays_with_the_adapter_where_it_is_verified(trained: tuple[Path, dict[str, Any]]) -> None:
    (trained[0] / "model" / "optimizer.pt").write_bytes(b"pickle")
    names = {path.name for path in Path(open_adapter(str(trained[0] / "model"))).iterdir()}
    assert "quantized_base.json" in names and "optimizer.pt" not in names
    # A fine-tuning job publishes these of each checkpoint.
    published = {path.name for glob in MODEL_FILES for path in (trained[0] / "model").glob(glob)}
    assert "quantized_base.json" in published and "optimizer.pt" not in published

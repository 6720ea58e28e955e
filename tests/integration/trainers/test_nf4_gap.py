"""Goal: the gap of a base in nf4 is measured with each adapter, and expected where it is served.

Method: short runs with torch on the starter; the parity check's code then measures the adapter again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.parity.__main__ import find_quantized_base
from serving.parity.compare import ParityReport
from serving.parity.quantization import compare_training
from serving.parity.reference import ReferenceModel
from tests.integration.trainers.conftest import losses
from tests.integration.trainers.stages import at_checkpoint, run_stage
from trainers.configs.base import AdaptedModel
from trainers.modeling.model_files import ModelRole, open_model
from trainers.modeling.quantization.record import QUANTIZED_BASE, read_quantized_base
from trainers.runtime import run_dir as files

pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
LORA = {"method": "lora", "rank": 4, "alpha": 8, "quantization": "nf4"}
ROWS = [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(16)]
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def stage(starter: Path, write_rows: Callable[[list[dict[str, Any]]], str]) -> dict[str, Any]:
    return {
        **{"stage": "sft", "base": str(starter), "dataset": write_rows(ROWS), "preflight": "off"},
        **{"tuning": LORA | {"dropout": 0.1}, "max_steps": 4, "batch_size": 8, "learning_rate": 5e-3},
        **{"save_every_steps": 2, "keep_checkpoints": 2, "log_every_steps": 1},
    }


@pytest.fixture(scope="module")
def trained(stage: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run_dir = tmp_path_factory.mktemp("nf4") / "run"
    result = run_stage(stage, run_dir)
    assert result is not None
    return run_dir, result


def measure(base: str, adapter: Path) -> ParityReport:
    report, record = ParityReport(passed=True), find_quantized_base(str(adapter))
    assert record is not None
    compare_training(ReferenceModel(AdaptedModel(base=base, adapter=str(adapter))), record, report)
    return report


def test_the_parity_check_finds_the_gap_that_is_stated_with_the_result(
    stage: dict[str, Any], trained: tuple[Path, dict[str, Any]]
) -> None:
    run_dir, result = trained
    stated = result["quantized_base"]
    assert (stated["format"], stated["bits"], stated["group_size"]) == ("nf4", 4, 64)
    assert stated["gap"]["mean"] > 0.005
    report = measure(stage["base"], run_dir / "model")
    assert report.passed and report.quantization is not None
    for name in ("mean", "max"):
        assert report.quantization["found"][name] == pytest.approx(stated["gap"][name], abs=1e-4)


def test_the_norms_of_dora_are_those_of_the_original_weights(stage: dict[str, Any], tmp_path: Path) -> None:
    result = run_stage(stage | {"tuning": LORA | {"dora": True}, "max_steps": 2}, tmp_path / "run")
    assert result is not None
    report = measure(stage["base"], tmp_path / "run" / "model")
    assert report.quantization is not None
    expected = result["quantized_base"]["gap"]["max"]
    assert report.quantization["found"]["max"] == pytest.approx(expected, abs=1e-4)


def test_each_checkpoint_has_the_record_of_its_own_adapter(
    stage: dict[str, Any], trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folders = [trained[0] / line.path for line in files.checkpoints(trained[0])]
    records = [read_quantized_base(folder / QUANTIZED_BASE) for folder in folders]
    published = read_quantized_base(trained[0] / "model" / QUANTIZED_BASE)
    assert records[1] == published != records[0]
    assert len({record.sha256 for record in [*records, published]}) == 1
    opened = open_model(folders[0], ModelRole.adapter, [], tmp_path / "views")
    assert measure(stage["base"], opened).passed


def test_the_measurement_changes_no_step(
    stage: dict[str, Any], trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    at_checkpoint(trained[0], tmp_path / "resumed", 2)
    run_stage(stage, tmp_path / "resumed")
    run_stage(stage | {"save_every_steps": 100}, tmp_path / "unmeasured")
    whole = losses(trained[0])
    assert losses(tmp_path / "resumed") == {step: whole[step] for step in (3, 4)}
    assert losses(tmp_path / "unmeasured") == whole
    published = [(folder / "model" / WEIGHTS).read_bytes() for folder in (trained[0], tmp_path / "resumed")]
    assert published[0] == published[1]

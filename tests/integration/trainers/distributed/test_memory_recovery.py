"""Goal: a run of two processes that ran out of memory ends with the losses of one that did not."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.trainers.conftest import losses
from tests.integration.trainers.distributed.test_processes import run, stage, start
from trainers.configs import parse_stage
from trainers.runtime import run_dir as files
from workers.runs import results
from workers.runs.recovery import reduce_memory

assert stage, "a fixture of the tests below"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_each_step_of_the_recovery_keeps_the_losses(stage: dict[str, Any], rank: str, tmp_path: Path) -> None:
    config = parse_stage(stage | {"devices": 2, "tuning": {"dropout": 0.1}}).model_dump(mode="json")
    run(config, tmp_path / "whole")
    codes: list[str] = []
    for _ in range(2):
        folder = tmp_path / str(len(codes))
        start(config, folder, "failing", FAILURE="memory", FAILING_RANK=rank).communicate(timeout=280)
        error = results.read_error(folder)
        assert error is not None
        end = reduce_memory(error, config, results.recomputes_all(folder))
        assert end.smaller_config is not None and end.warning is not None
        codes.append(end.warning.data["code"])
        config = end.smaller_config
        run(config, tmp_path / f"after-{codes[-1]}")
    assert codes == ["recomputation_enabled", "micro_batch_halved"]
    expected = losses(tmp_path / "whole")
    assert losses(tmp_path / "after-recomputation_enabled") == pytest.approx(expected, abs=1e-6)
    # Dropout draws other masks for other micro-batches.
    assert losses(tmp_path / "after-micro_batch_halved")[1] == pytest.approx(expected[1], abs=0.05)
    reports = [files.read_json(tmp_path / folder / files.RECOMPUTATION) or {} for folder in "01"]
    assert [report["every_n_layers"] for report in reports] == [None, 1]

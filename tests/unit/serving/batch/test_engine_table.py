"""The engines of a batch's models: shares, and models that nothing serves any more."""

from pathlib import Path

from serving.batch.engine_table import MISSING_SECONDS, EngineTable
from serving.batch.files import (
    CONTROL,
    Availability,
    Control,
    EngineTarget,
    ModelTargets,
    write_replaced,
)
from trainers.configs import BatchConfig


def write(folder: Path, **models: ModelTargets) -> None:
    write_replaced(folder / CONTROL, Control(models=models))


def test_a_model_is_gone_only_after_the_time_that_a_replacement_takes(tmp_path: Path) -> None:
    now = [0.0]
    table = EngineTable(BatchConfig(), tmp_path, lambda: now[0])
    missing = ModelTargets(availability=Availability.missing)
    write(tmp_path, m=missing)
    table.refresh()
    now[0] = MISSING_SECONDS + 1
    assert table.is_gone("m") and table.choose("m") is None
    write(tmp_path, m=ModelTargets(availability=Availability.waiting))
    table.refresh()
    assert not table.is_gone("m")


def test_a_target_is_chosen_by_its_share(tmp_path: Path) -> None:
    targets = [EngineTarget(base_url=f"http://{share}", model="m", share=share) for share in (1.0, 0.0)]
    write(tmp_path, m=ModelTargets(availability=Availability.ready, targets=targets))
    table = EngineTable(BatchConfig(), tmp_path)
    assert all(table.choose("m") == targets[0] for _ in range(50))
    assert table.choose("other") is None


def test_a_damaged_control_file_changes_nothing(tmp_path: Path) -> None:
    target = EngineTarget(base_url="http://x", model="m")
    write(tmp_path, m=ModelTargets(availability=Availability.ready, targets=[target]))
    table = EngineTable(BatchConfig(), tmp_path)
    (tmp_path / CONTROL).write_text("{")
    table.refresh()
    assert table.choose("m") == target

"""Goal: readers of a run directory see complete files only, whenever the writer is killed."""

import shutil
import subprocess
import sys
from pathlib import Path

from trainers.runtime import run_dir as files
from trainers.runtime.errors import CollectiveFailed, DiskFull


def publish(run_dir: Path, step: int, content: str = "weights") -> Path:
    written = run_dir / "scratch" / f"checkpoint-{step}"
    written.mkdir(parents=True)
    (written / "model.bin").write_text(content)
    return run_dir / files.publish_checkpoint(run_dir, step, written).path


def test_published_checkpoint_is_the_last_complete_one(tmp_path: Path) -> None:
    publish(tmp_path, 5)
    newest = publish(tmp_path, 10)
    assert files.last_complete_checkpoint(tmp_path) == newest
    assert newest.name == "step-00000010"
    line = files.checkpoints(tmp_path)[-1]
    assert (line.step, line.path, line.size_bytes) == (10, "checkpoints/step-00000010", len("weights"))


def test_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert files.last_complete_checkpoint(tmp_path) is None


def test_checkpoint_with_a_changed_byte_is_skipped(tmp_path: Path) -> None:
    older, newest = publish(tmp_path, 5), publish(tmp_path, 10)
    (newest / "model.bin").write_text("weightz")
    assert files.last_complete_checkpoint(tmp_path) == older


def test_checkpoint_that_lost_a_file_is_skipped(tmp_path: Path) -> None:
    older, newest = publish(tmp_path, 5), publish(tmp_path, 10)
    (newest / "model.bin").unlink()
    assert files.last_complete_checkpoint(tmp_path) == older


def test_folder_without_a_line_is_not_a_checkpoint(tmp_path: Path) -> None:
    older = publish(tmp_path, 5)
    shutil.copytree(older, tmp_path / "checkpoints" / "step-00000099")
    assert files.last_complete_checkpoint(tmp_path) == older
    files.prune_checkpoints(tmp_path, keep=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]


def test_a_folder_with_another_manifest_is_not_this_runs_checkpoint(tmp_path: Path) -> None:
    older, newest = publish(tmp_path / "run", 5), publish(tmp_path / "run", 10)
    foreign = publish(tmp_path / "foreign", 10, "another run's optimizer")
    shutil.rmtree(newest)
    shutil.copytree(foreign, newest)
    assert files.last_complete_checkpoint(tmp_path / "run") == older


def test_a_file_that_the_manifest_does_not_list_makes_a_checkpoint_foreign(tmp_path: Path) -> None:
    older, newest = publish(tmp_path, 5), publish(tmp_path, 10)
    (newest / "optimizer.pt").write_text("pickle")
    assert files.last_complete_checkpoint(tmp_path) == older


def test_a_line_that_leads_out_of_the_run_directory_is_skipped(tmp_path: Path) -> None:
    older, foreign = publish(tmp_path / "run", 5), publish(tmp_path / "foreign", 10)
    line = files.checkpoints(tmp_path / "foreign")[0].model_dump()
    for path in ("../foreign/checkpoints/step-00000010", str(foreign)):
        files.append_line(tmp_path / "run" / "checkpoints.jsonl", line | {"path": path})
    assert files.last_complete_checkpoint(tmp_path / "run") == older


def test_torn_last_line_does_not_hide_older_checkpoints(tmp_path: Path) -> None:
    older = publish(tmp_path, 5)
    with (tmp_path / "checkpoints.jsonl").open("a") as file:
        file.write('{"step": 10, "path": "checkp')
    assert files.last_complete_checkpoint(tmp_path) == older
    newest = publish(tmp_path, 15)
    assert files.last_complete_checkpoint(tmp_path) == newest
    assert [checkpoint.step for checkpoint in files.checkpoints(tmp_path)] == [5, 15]


def test_checkpoint_of_a_repeated_step_replaces_the_former(tmp_path: Path) -> None:
    publish(tmp_path, 5, "first")
    assert (publish(tmp_path, 5, "second") / "model.bin").read_text() == "second"
    assert files.last_complete_checkpoint(tmp_path) is not None


def test_pruning_keeps_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        publish(tmp_path, step)
    files.prune_checkpoints(tmp_path, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000010",
        "step-00000015",
    ]


def test_folder_is_published_whole_and_replaces_the_former(tmp_path: Path) -> None:
    files.publish_folder(tmp_path / "model", lambda folder: _write(folder / "old"))
    files.publish_folder(tmp_path / "model", lambda folder: _write(folder / "new"))
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "new"]


def test_result_and_error_are_read_back(tmp_path: Path) -> None:
    assert files.read_result(tmp_path) is None
    files.write_result(tmp_path, {"stage": "sft"})
    files.write_error(tmp_path, DiskFull("The disk is full.", "Free space."))
    assert files.read_result(tmp_path) == {"stage": "sft"}
    error = files.read_error(tmp_path)
    assert error is not None and error.pop("time")
    assert error == {"code": "disk_full", "message": "The disk is full.", "hint": "Free space."}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["error.json", "result.json"]


def test_of_the_errors_of_several_ranks_the_first_cause_is_read(tmp_path: Path) -> None:
    files.write_error(tmp_path, CollectiveFailed("Rank 0 lost contact."), 0)
    files.write_json(tmp_path / "error-3.json", {"code": "internal_error", "message": "", "time": "9999"})
    files.write_error(tmp_path, DiskFull("The disk is full."), 12)
    error = files.read_error(tmp_path)
    assert error is not None and error["code"] == "disk_full"


def test_workers_can_import_the_contract_without_any_ml_package() -> None:
    code = (
        "import sys, trainers.runtime.run_dir, trainers.runtime.errors, trainers.runtime.events;"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "numpy", "datasets", "peft"} & set(out.split())


def _write(path: Path) -> None:
    path.write_text("content")

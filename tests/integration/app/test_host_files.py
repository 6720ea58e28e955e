"""Files of a host: directories of runs that ended, copies of remote artifacts, and partial uploads."""

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.retention import host_files
from app.retention.host_files import MODEL_VIEWS, ROW_CACHE, ROW_CACHE_META, collect_host_files
from app.settings import Settings
from app.storage.cache import USED_SUFFIX
from app.storage.database import transaction
from app.tables import Dataset, Model, ModelKind, Run, RunStatus
from app.tables.base import utc_now

Make = Callable[..., list[Run]]


def write(path: Path, *, size: int = 10, age_seconds: float = 1e6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    for each in (path, path.parent, path.parent.parent):
        os.utime(each, (time.time() - age_seconds,) * 2)
    return path


def names(settings: Settings) -> set[str]:
    runs = settings.data_dir / "runs"
    return {path.relative_to(runs).as_posix() for path in runs.rglob("log.txt")}


@pytest.mark.parametrize(
    "status", [RunStatus.cancelled, RunStatus.failed, RunStatus.paused, RunStatus.queued]
)
def test_the_directory_of_a_run_that_no_worker_holds_is_removed(
    settings: Settings, make_job: Make, status: RunStatus
) -> None:
    (run,) = make_job(status, attempt=1)
    write(settings.data_dir / "runs" / run.id / "attempt-1" / "log.txt")
    assert [file.path.name for file in collect_host_files(settings, dry_run=True)] == [run.id]
    assert names(settings) == {f"{run.id}/attempt-1/log.txt"}
    collect_host_files(settings)
    assert list((settings.data_dir / "runs").iterdir()) == []


def test_the_directory_of_the_attempt_that_holds_its_run_stays(settings: Settings, make_job: Make) -> None:
    (run,) = make_job(RunStatus.running, attempt=2)
    for attempt in (1, 2):
        write(settings.data_dir / "runs" / run.id / f"attempt-{attempt}" / "log.txt")
    collect_host_files(settings)
    assert names(settings) == {f"{run.id}/attempt-2/log.txt"}


def test_a_directory_that_was_just_written_and_one_of_a_deleted_job(
    settings: Settings, make_job: Make
) -> None:
    (run,) = make_job(RunStatus.succeeded, attempt=1)
    write(settings.data_dir / "runs" / run.id / "attempt-1" / "log.txt", age_seconds=5)
    write(settings.data_dir / "runs" / "run_gone" / "attempt-1" / "log.txt")
    collect_host_files(settings)
    assert names(settings) == {f"{run.id}/attempt-1/log.txt"}


def test_the_cache_keeps_what_is_in_use_and_what_was_used_last(settings: Settings, make_job: Make) -> None:
    cache = settings.data_dir / "cache"
    hashes = [digit * 64 for digit in "abcd"]
    for age, name in zip((9e5, 8e5, 7e5, 60), hashes, strict=True):
        write(cache / name, size=100)
        write(cache / f"{name}{USED_SUFFIX}", size=0, age_seconds=age)
    with transaction() as session:
        model = Model(name="m", kind=ModelKind.base, base="b", artifact="m", sha256=hashes[0], size_bytes=1)
        session.add(model)
    make_job(RunStatus.running, config={"base": model.id})
    limited = settings.model_copy(update={"max_cache_bytes": 150})
    assert [file.path.name for file in collect_host_files(limited)] == hashes[1:3]
    assert {path.name[0] for path in cache.iterdir()} == {"a", "d"}


def test_the_rendered_rows_of_a_deleted_dataset_go_when_no_run_uses_them(
    settings: Settings, make_dataset: Callable[..., Dataset]
) -> None:
    kept, deleted, used = (make_dataset(digit, sha256=digit * 64) for digit in "abc")
    with transaction() as session:
        for dataset in (deleted, used):
            session.merge(dataset).deleted_at = utc_now()
    for dataset in (kept, deleted, used):
        write(settings.data_dir / ROW_CACHE / dataset.sha256 / ROW_CACHE_META).write_text(
            json.dumps({"datasets": [dataset.sha256]})
        )
    write(settings.data_dir / ROW_CACHE / ".abc.1.tmp" / "rows.arrow")
    with (settings.data_dir / ROW_CACHE / used.sha256 / ROW_CACHE_META).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        removed = {path.path.name for path in collect_host_files(settings)}
    assert removed == {".abc.1.tmp", deleted.sha256}


def test_uploads_and_copies_that_were_not_completed_are_removed_after_a_day(settings: Settings) -> None:
    write(settings.data_dir / "uploads" / "upload-1" / "rows.jsonl")
    write(settings.data_dir / "uploads" / "upload-2" / "rows.jsonl", age_seconds=60)
    write(settings.data_dir / "upload-owners" / "key_a" / "abc.part")
    write(settings.data_dir / "cache" / "abc.0123.part")
    collect_host_files(settings)
    left = [*(settings.data_dir / "uploads").iterdir(), *(settings.data_dir / "cache").iterdir()]
    assert [path.name for path in left] == ["upload-2"]
    assert list((settings.data_dir / "upload-owners").rglob("*.part")) == []


def test_the_view_of_a_model_goes_with_the_model(settings: Settings) -> None:
    model, deleted = (settings.data_dir / "artifacts" / "models" / name for name in ("model_1", "model_2"))
    write(model / "model.safetensors")
    for view, target in (("kept", model), ("gone", deleted), ("remote", settings.data_dir / "cache" / "a")):
        folder = settings.data_dir / MODEL_VIEWS / view
        folder.mkdir(parents=True)
        (folder / "model.safetensors").symlink_to(target / "model.safetensors")
    assert [file.path.name for file in collect_host_files(settings)] == ["gone"]


def test_one_process_of_a_host_collects_at_a_time(settings: Settings, make_job: Make) -> None:
    write(settings.data_dir / "runs" / "run_gone" / "attempt-1" / "log.txt")
    with host_files._lock(settings.data_dir) as is_locked:
        assert is_locked and collect_host_files(settings) == []

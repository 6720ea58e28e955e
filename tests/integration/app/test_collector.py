"""Garbage and its collector: what no row names goes, once nothing can name it any more."""

import time
from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import select
from starlette.testclient import TestClient

from app.retention import collector
from app.retention.collector import ForeignStore, hold_storage_lease
from app.retention.garbage import delete_garbage
from app.settings import Settings
from app.storage.database import transaction
from app.storage.inventory import list_artifacts
from app.storage.opening import get_store
from app.tables import (
    Checkpoint,
    Event,
    Model,
    ModelKind,
    Run,
    RunStatus,
    StorageState,
)
from tests.integration.app.stored_artifacts import (
    LONG_AGO,
    STATE_BYTES,
    Make,
    add_checkpoint,
    add_events,
    add_log,
    add_model,
    finish,
    make_old,
    publish,
    rows,
    run_collection,
    set_values,
    stored_keys,
)


def test_the_files_of_deleted_objects_go_at_once_and_unknown_ones_after_the_grace_period(
    settings: Settings, make_job: Make, tmp_path: Path, client: TestClient
) -> None:
    run_collection(settings)
    run = finish(make_job)
    add_checkpoint(tmp_path, run, 5)
    add_log(tmp_path, run)
    model = add_model(tmp_path, run)
    publish(tmp_path / "new", "models/model_in_progress", {"a": 5})
    path = Path(get_store().root, "models/model_x.0123.part/weights")
    path.parent.mkdir()
    path.write_text("partial")
    client.delete(f"/api/v1/models/{model.id}")
    client.delete(f"/api/v1/jobs/{run.job_id}")
    foreign = Path(get_store().root, "README")
    foreign.write_text("not ours")
    run_collection(settings)
    assert stored_keys() == {"models/model_in_progress", "models/model_x.0123.part", "README"}
    make_old(settings)
    run_collection(settings)
    assert stored_keys() == {"README"}


def test_an_old_artifact_without_a_row_stays_while_a_run_that_may_have_written_it_is_held(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    (run,) = make_job(RunStatus.running, started_at=LONG_AGO - timedelta(hours=3))
    publish(tmp_path / "new", "models/model_in_progress", {"a": 5})
    add_checkpoint(tmp_path, finish(make_job), 5)
    make_old(settings)
    run_collection(settings)
    assert "models/model_in_progress" in stored_keys()
    set_values(Run, run.id, status=RunStatus.failed)
    run_collection(settings)
    assert "models/model_in_progress" not in stored_keys()


def test_a_row_that_is_committed_between_listing_and_deletion_protects_its_artifact(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    run = finish(make_job)
    add_model(tmp_path, run)
    publish(tmp_path / "late", "models/model_late", {"a": 5})
    make_old(settings)

    artifacts = list_artifacts(get_store())
    with transaction() as session:
        session.add(
            Model(
                id="model_late",
                name="l",
                kind=ModelKind.base,
                base="b",
                artifact="models/model_late",
                sha256="",
                size_bytes=5,
            )
        )
    deleted = list(delete_garbage(get_store(), artifacts, 600, lambda: None))
    assert deleted == []


def test_weights_to_which_another_process_is_about_to_move_the_row_stay(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    checkpoint = add_checkpoint(tmp_path, finish(make_job), 5)
    weights = publish(tmp_path / "weights", f"{checkpoint.artifact}-weights", {"weights": 7})
    artifacts = list_artifacts(get_store())
    assert list(delete_garbage(get_store(), artifacts, 600, lambda: None)) == []
    set_values(Checkpoint, checkpoint.id, artifact=weights.key, sha256=weights.sha256)
    deleted = list(delete_garbage(get_store(), artifacts, 600, lambda: None))
    assert [removal.name for removal in deleted] == [checkpoint.artifact]


def test_the_files_of_earlier_attempts_are_garbage(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    run_collection(settings)
    (run,) = make_job(RunStatus.running, attempt=2)
    add_log(tmp_path, run)
    set_values(Run, run.id, log_artifact=None)
    run_collection(settings)
    assert stored_keys() == set()


def test_a_dry_run_reports_the_same_and_changes_nothing(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    run = finish(make_job, finished_at=LONG_AGO)
    add_checkpoint(tmp_path, run, 5)
    add_log(tmp_path, run)
    add_events(run, 30)
    publish(tmp_path / "orphan", "models/model_orphan", {"a": 5})
    make_old(settings)
    before = stored_keys(), len(rows(Event)), [row.sha256 for row in rows(Checkpoint)]
    dry, _ = run_collection(settings, dry_run=True)
    assert before == (stored_keys(), len(rows(Event)), [row.sha256 for row in rows(Checkpoint)])
    real, _ = run_collection(settings)
    assert dry.removed == real.removed


def test_the_store_of_another_installation_is_left_as_it_is(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    add_checkpoint(tmp_path, finish(make_job), 5)
    run_collection(settings)
    with transaction() as session:
        session.delete(session.exec(select(StorageState)).one())
    make_old(settings)
    with pytest.raises(ForeignStore, match="belongs to the installation"):
        run_collection(settings)
    assert len(stored_keys()) == 1


def test_a_new_database_deletes_nothing_from_a_store_that_has_artifacts(
    settings: Settings, tmp_path: Path
) -> None:
    publish(tmp_path / "other", "models/model_other", {"a": 5})
    make_old(settings)
    with pytest.raises(ForeignStore, match="names none of them"):
        run_collection(settings)
    assert stored_keys() == {"models/model_other"}


def test_one_process_at_a_time_collects_and_an_expired_lease_is_taken_over(settings: Settings) -> None:
    with hold_storage_lease() as first:
        with hold_storage_lease() as second:
            assert (first is not None, second) == (True, None)
        with transaction() as session:
            session.exec(select(StorageState)).one().lease_expires_at = LONG_AGO
        with hold_storage_lease() as third:
            assert third is not None
            assert first is not None
            first._renewed_at = 0.0
            with pytest.raises(collector.CollectionInterrupted):
                first.renew()


def test_a_collection_is_due_only_after_its_interval(settings: Settings) -> None:
    run_collection(settings)
    with hold_storage_lease(min_age_seconds=3600) as lease:
        assert lease is None


def test_the_storage_endpoint_and_the_gauges_report_the_collection(
    settings: Settings, make_job: Make, tmp_path: Path, client: TestClient
) -> None:
    add_checkpoint(tmp_path, finish(make_job), 5)
    before = client.get("/api/v1/storage").json()
    assert (before["checkpoints"]["count"], before["last_collection"]) == (1, None)
    run_collection(settings)
    after = client.get("/api/v1/storage").json()
    assert after["checkpoints"]["size_bytes"] == before["checkpoints"]["size_bytes"] - STATE_BYTES
    assert after["last_collection"]["removed"][0]["reason"] == "checkpoint_state"
    assert after["disks"][0]["free_bytes"] > 0 and after["database_bytes"] > 0
    metrics = client.get("/metrics").text
    assert 'tunesmith_storage_rows{kind="checkpoints"} 1.0' in metrics
    assert "tunesmith_storage_reclaimable_bytes 0.0" in metrics


def test_the_collector_thread_collects_and_stops(settings: Settings) -> None:
    thread = collector.Collector(settings.model_copy(update={"gc_seconds": 0.05}))
    thread.start()
    deadline = time.monotonic() + 60
    while not any(state.report for state in rows(StorageState)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    thread.stop()
    thread._thread.join(60)
    assert not thread._thread.is_alive()

"""Retention and garbage: what goes, what stays, and that a crash at any point leaves the thing or nothing.

Method: publish real artifacts with rows, age them, collect, and verify the whole store afterwards. The crash
test repeats a collection that ends at its first, second, … write until one completes.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlmodel import Session, col, select
from starlette.testclient import TestClient

from app.jobs import actions
from app.retention import collector
from app.retention.collector import ForeignStore, collect, hold_storage_lease
from app.retention.events import ThinnedCurve
from app.retention.garbage import delete_garbage
from app.retention.report import CollectionReport, Removal, RemovalReason
from app.settings import Settings, SucceededCheckpoints
from app.storage.artifacts import ArtifactStore, get_store
from app.storage.database import read_session, transaction
from app.storage.inventory import list_artifacts
from app.storage.verify import verify_store
from app.tables import (
    AliasVersion,
    ApiKey,
    Checkpoint,
    Dataset,
    Deployment,
    DeploymentStatus,
    Event,
    EventType,
    Model,
    ModelKind,
    Run,
    RunStatus,
    StorageState,
    Worker,
)
from trainers.configs import EngineKind, Queue, StageKind

Make = Callable[..., list[Run]]
LONG_AGO = datetime.now(UTC) - timedelta(days=200)
FILES = {
    "adapter_model.safetensors": 700,
    "adapter_config.json": 10,
    "optimizer.pt": 1400,
    "rng_state.pth": 20,
    "scheduler.pt": 20,
    "global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt": 60,
    "trainer_state.json": 10,
    "manifest.json": 5,
}
STATE_BYTES = 1400 + 20 + 20 + 60


def run_collection(settings: Settings, **options: Any) -> tuple[CollectionReport, list[Removal]]:
    removals: list[Removal] = []
    with hold_storage_lease() as lease:
        assert lease is not None
        report = collect(settings, options.pop("store", get_store()), lease, removals.append, **options)
    return report, removals


def publish(folder: Path, key: str, files: dict[str, int] | None = None) -> Any:
    for name, size in (files or FILES).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(size))
    return get_store().publish_folder(folder, key)


def add_checkpoint(tmp_path: Path, run: Run, step: int) -> Checkpoint:
    published = publish(tmp_path / "written" / f"{run.id}-{step}", f"checkpoints/{run.id}/1-{step:08d}")
    checkpoint = Checkpoint(
        run_id=run.id,
        attempt=1,
        step=step,
        artifact=published.key,
        sha256=published.sha256,
        size_bytes=published.size_bytes,
    )
    add(checkpoint)
    return checkpoint


def add_model(tmp_path: Path, run: Run) -> Model:
    published = publish(
        tmp_path / "model" / run.id, f"models/model_{run.id}", {"adapter_model.safetensors": 700}
    )
    model = Model(
        id=f"model_{run.id}",
        name="sft",
        kind=ModelKind.adapter,
        base="org/base",
        run_id=run.id,
        artifact=published.key,
        sha256=published.sha256,
        size_bytes=published.size_bytes,
    )
    add(model)
    return model


def add(row: Any) -> Any:
    with transaction() as session:
        session.add(row)
    return row


def add_log(tmp_path: Path, run: Run, size: int = 100) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"x" * size)
    get_store().publish_file(path, f"runs/{run.id}/1/log.txt")
    set_values(Run, run.id, log_artifact=f"runs/{run.id}/1/log.txt")


def set_values(table: type[Any], row_id: str, **values: Any) -> None:
    with transaction() as session:
        row = session.get_one(table, row_id)
        for name, value in values.items():
            setattr(row, name, value)


def make_old(settings: Settings) -> None:
    """Give everything in the store a time before every grace period."""
    for folder, _, names in os.walk(get_store().root):
        for name in names:
            os.utime(Path(folder, name), (LONG_AGO.timestamp(),) * 2)


def list_faults() -> list[str]:
    return [f"{fault.kind} {fault.key}" for fault in verify_store(get_store(), lambda progress: None)]


def stored_keys() -> set[str]:
    return {artifact.key for artifact in list_artifacts(get_store())} - {collector.INSTALLATION_KEY}


def rows(table: type[Any]) -> list[Any]:
    with read_session() as session:
        return list(session.exec(select(table)).all())


def finish(make_job: Make, status: RunStatus = RunStatus.succeeded, **values: Any) -> Run:
    (run,) = make_job(status, attempt=1, **{"finished_at": datetime.now(UTC), **values})
    return run


def test_a_succeeded_run_keeps_the_weights_of_its_checkpoints_only(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    run = finish(make_job)
    before = [add_checkpoint(tmp_path, run, step) for step in (5, 10)]
    report, _ = run_collection(settings)
    after = rows(Checkpoint)
    assert [checkpoint.resumable for checkpoint in after] == [False, False]
    assert [a.size_bytes for a in after] == [b.size_bytes - STATE_BYTES for b in before]
    assert stored_keys() == {f"{checkpoint.artifact}-weights" for checkpoint in before}
    assert [(c.reason, c.count, c.size_bytes) for c in report.removed] == [
        (RemovalReason.checkpoint_state, 2, 2 * STATE_BYTES)
    ]
    assert list_faults() == []
    assert run_collection(settings)[0].removed == []


@pytest.mark.parametrize(
    "status", [RunStatus.failed, RunStatus.cancelled, RunStatus.running, RunStatus.paused]
)
def test_a_run_that_may_resume_keeps_whole_checkpoints(
    settings: Settings, make_job: Make, tmp_path: Path, status: RunStatus
) -> None:
    run = finish(make_job, status)
    checkpoint = add_checkpoint(tmp_path, run, 5)
    make_old(settings)
    assert run_collection(settings)[0].removed == []
    if status.finished:
        set_values(Run, run.id, finished_at=LONG_AGO)
        assert run_collection(settings)[0].removed[0].reason is RemovalReason.checkpoint_expired
        assert (rows(Checkpoint), stored_keys()) == ([], set())
    else:
        assert stored_keys() == {checkpoint.artifact}


@pytest.mark.parametrize(
    ("choice", "n_kept"), [(SucceededCheckpoints.all, 1), (SucceededCheckpoints.none, 0)]
)
def test_the_settings_choose_what_stays_of_checkpoints(
    settings: Settings, make_job: Make, tmp_path: Path, choice: SucceededCheckpoints, n_kept: int
) -> None:
    add_checkpoint(tmp_path, finish(make_job), 5)
    run_collection(settings.model_copy(update={"succeeded_checkpoints": choice}))
    assert len(rows(Checkpoint)) == n_kept == len(stored_keys())


def test_a_checkpoint_of_a_stage_without_a_model_goes_when_its_run_has_succeeded(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    add_checkpoint(tmp_path, finish(make_job, stage=StageKind.generate), 5)
    run_collection(settings)
    assert rows(Checkpoint) == []


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


def test_a_checkpoint_with_a_missing_file_does_not_end_the_collection(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    run = finish(make_job)
    damaged, whole = [add_checkpoint(tmp_path, run, step) for step in (5, 10)]
    Path(get_store().root, damaged.artifact, "adapter_model.safetensors").unlink()
    run_collection(settings)
    assert {(row.step, row.resumable) for row in rows(Checkpoint)} == {(5, True), (10, False)}
    assert stored_keys() == {damaged.artifact, f"{whole.artifact}-weights"}


def test_logs_above_the_limit_go_from_the_oldest_run_on(
    settings: Settings, make_job: Make, tmp_path: Path, client: TestClient
) -> None:
    older, newer = finish(make_job, finished_at=LONG_AGO), finish(make_job)
    for run in (older, newer):
        add_log(tmp_path, run)
    limited = settings.model_copy(update={"max_run_files_bytes": 150})
    run_collection(limited)
    assert stored_keys() == {f"runs/{newer.id}/1"}
    missing = client.get(f"/api/v1/runs/{older.id}/files/log.txt")
    assert (missing.status_code, "to bound the disk space" in missing.text) == (404, True)
    assert client.get(f"/api/v1/runs/{newer.id}/files/log.txt").text == "x" * 100


def test_the_files_of_earlier_attempts_are_garbage(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    run_collection(settings)
    (run,) = make_job(RunStatus.running, attempt=2)
    add_log(tmp_path, run)
    set_values(Run, run.id, log_artifact=None)
    run_collection(settings)
    assert stored_keys() == set()


def add_events(run: Run, n_metrics: int) -> None:
    losses = {7: 9.0, 13: -3.0}
    with transaction() as session:
        values: list[tuple[EventType, dict[str, Any]]] = [
            (EventType.status, {"status": "queued"}),
            (EventType.log, {"lines": ["a"]}),
        ]
        values += [(EventType.metrics, {"loss": losses.get(n, 1 / (n + 1))}) for n in range(n_metrics)]
        values += [(EventType.progress, {"step": 1}), (EventType.warning, {"code": "c", "message": "m"})]
        values += [(EventType.metrics, {"validation_loss": 0.5}), (EventType.status, {"status": "succeeded"})]
        session.add_all(
            Event(run_id=run.id, seq=seq, attempt=1, type=kind, step=seq, data=data)
            for seq, (kind, data) in enumerate(values, 1)
        )


def test_the_curve_of_an_old_run_keeps_its_ends_and_extremes(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    run = finish(make_job, finished_at=LONG_AGO)
    recent = finish(make_job)
    add_log(tmp_path, run)
    add_events(run, 500)
    add_events(recent, 30)
    thinning = settings.model_copy(update={"max_metric_points": 20})
    run_collection(thinning)
    kept = [event for event in rows(Event) if event.run_id == run.id]
    losses = [event.data["loss"] for event in kept if "loss" in event.data]
    assert 10 <= len(losses) <= 24
    assert (losses[0], losses[-1], max(losses), min(losses)) == (1.0, 1 / 500, 9.0, -3.0)
    others = [event.type for event in kept if "loss" not in event.data]
    assert others == [EventType.status, EventType.warning, EventType.metrics, EventType.status]
    assert len([event for event in rows(Event) if event.run_id == recent.id]) == 36
    assert run_collection(thinning)[0].removed == []


def test_a_log_that_was_never_published_stays_in_the_events(settings: Settings, make_job: Make) -> None:
    run = finish(make_job, RunStatus.failed, finished_at=LONG_AGO)
    add_events(run, 1)
    run_collection(settings)
    assert EventType.log in {event.type for event in rows(Event)}


def test_a_thinned_curve_is_bounded() -> None:
    curve = ThinnedCurve(100)
    for seq in range(100_000):
        curve.add(seq, float(seq % 977))
    assert 50 <= len(curve.list_seqs()) <= 103
    assert {0, 99_999} <= curve.list_seqs()


def test_old_records_that_nothing_refers_to_go(settings: Settings, make_job: Make, make_worker: Any) -> None:
    absent, working = make_worker(), make_worker()
    (run,) = make_job(RunStatus.running, worker_id=working.id)
    for worker in (absent, working):
        set_values(Worker, worker.id, last_seen_at=LONG_AGO)
    add(
        Deployment(
            name="a",
            base="b",
            engine=EngineKind.hf,
            queue=Queue.cpu,
            status=DeploymentStatus.stopped,
            stopped_at=LONG_AGO,
        )
    )
    add(ApiKey(name="k", sha256="s", hint="h", revoked_at=LONG_AGO))
    dataset = add(Dataset(name="d", sha256="1", artifact="datasets/1", size_bytes=1, deleted_at=LONG_AGO))
    add(Dataset(name="d", sha256="2", artifact="datasets/2", size_bytes=1, deleted_at=LONG_AGO))
    add(
        Model(
            name="m",
            kind=ModelKind.base,
            base="b",
            dataset_id=dataset.id,
            artifact="models/m",
            sha256="",
            size_bytes=1,
        )
    )
    report, _ = run_collection(settings)
    assert [(count.reason, count.count) for count in report.removed] == [(RemovalReason.record_expired, 4)]
    assert [worker.id for worker in rows(Worker)] == [working.id]
    assert [row.id for row in rows(Dataset)] == [dataset.id]
    assert (rows(Deployment), rows(ApiKey), run.worker_id) == ([], [], working.id)


def test_of_the_versions_of_an_alias_the_newest_thousand_stay(settings: Settings) -> None:
    with transaction() as session:
        session.add_all(AliasVersion(alias="a", version=n, targets=[]) for n in range(1, 1004))
        session.add_all(AliasVersion(alias="b", version=n, targets=[]) for n in (1, 2))
    run_collection(settings)
    versions = [row.version for row in rows(AliasVersion) if row.alias == "a"]
    assert (min(versions), len(versions), len(rows(AliasVersion))) == (4, 1000, 1002)


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


class Crash(BaseException):
    """The end of the process at a certain write."""


class Countdown:
    """Raises Crash at the n-th write of the store or the database."""

    def __init__(self, n: int) -> None:
        self.n = n

    def step(self, *_: object) -> None:
        self.n -= 1
        if self.n == 0:
            raise Crash


class CrashingStore(ArtifactStore):
    """A store that can end before each of its writes, and in the middle of a deletion."""

    countdown: Countdown

    def _copy(self, source: str, destination: str) -> None:
        self.countdown.step()
        super()._copy(source, destination)

    def _write(self, content: bytes, destination: str) -> None:
        self.countdown.step()
        super()._write(content, destination)

    def delete(self, key: str) -> None:
        self.countdown.step()
        for path in sorted(Path(self._path(key)).rglob("*")):
            if path.is_file():
                path.unlink()
                self.countdown.step()
        super().delete(key)


@contextmanager
def crash_at(n: int, settings: Settings) -> Iterator[CrashingStore]:
    store = CrashingStore(settings.artifacts_url, settings.data_dir / "cache")
    store.countdown = Countdown(n)
    event.listen(Session, "before_commit", store.countdown.step)
    event.listen(Session, "after_commit", store.countdown.step)
    try:
        yield store
    finally:
        event.remove(Session, "before_commit", store.countdown.step)
        event.remove(Session, "after_commit", store.countdown.step)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_crash_at_any_write_of_a_collection_leaves_every_named_artifact_whole(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    run_collection(settings)
    limited = settings.model_copy(update={"max_run_files_bytes": 50})
    for n in count(1):
        succeeded = finish(make_job, finished_at=LONG_AGO)
        weights = add_checkpoint(tmp_path, succeeded, n)
        add_log(tmp_path, succeeded)
        add_checkpoint(tmp_path, finish(make_job, RunStatus.failed, finished_at=LONG_AGO), n)
        publish(tmp_path / f"orphan{n}", f"models/model_orphan{n}", {"a": 5, "b": 5})
        make_old(settings)
        has_crashed = crash_collection(limited, n)
        assert [fault for fault in list_faults() if not fault.startswith("unknown")] == []
        run_collection(limited)
        (kept,) = rows(Checkpoint)
        assert (kept.artifact, kept.resumable) == (f"{weights.artifact}-weights", False)
        assert stored_keys() == {kept.artifact}
        if not has_crashed:
            break
        with transaction() as session:
            actions.delete(session, succeeded.job_id)
        run_collection(limited)
    assert n > 30


def crash_collection(settings: Settings, n: int) -> bool:
    """Collect up to the n-th write; return False if the collection has fewer."""
    with crash_at(n, settings) as store:
        try:
            run_collection(settings, store=store)
        except Crash:
            release_lease()
            return True
    return False


def release_lease() -> None:
    """Let the lease of a process that crashed end."""
    with transaction() as session:
        for state in session.exec(select(StorageState)).all():
            state.lease_expires_at = LONG_AGO


def test_a_crash_after_the_deletion_of_a_job_leaves_nothing_of_it(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    run_collection(settings)
    for n in (1, 2):
        run = finish(make_job)
        add_checkpoint(tmp_path, run, 5)
        with crash_at(n, settings), pytest.raises(Crash), transaction() as session:
            actions.delete(session, run.job_id)
        is_deleted = run.id not in {row.id for row in rows(Run)}
        assert is_deleted == (n == 2)
        assert {row.run_id for row in rows(Checkpoint)} == (set() if is_deleted else {run.id})
        assert [fault for fault in list_faults() if not fault.startswith("unknown")] == []
        with transaction() as session:
            if not is_deleted:
                actions.delete(session, run.job_id)
    run_collection(settings)
    assert stored_keys() == set()


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
    deadline = time.monotonic() + 20
    while not any(state.report for state in rows(StorageState)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    thread.stop()
    assert not thread._thread.is_alive()


def test_unfinished_runs_do_not_lose_their_newest_checkpoint(
    settings: Settings, make_job: Make, tmp_path: Path
) -> None:
    run_collection(settings)
    (run,) = make_job(RunStatus.running, attempt=1)
    published = publish(tmp_path / "c", f"checkpoints/{run.id}/1-00000005")
    run_collection(settings)
    assert stored_keys() == {published.key}
    with read_session() as session:
        assert session.exec(select(Checkpoint).where(col(Checkpoint.run_id) == run.id)).all() == []

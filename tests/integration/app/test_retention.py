"""Retention: what the settings remove of checkpoints, logs, events and records, and what stays."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select
from starlette.testclient import TestClient

from app.retention.events import ThinnedCurve
from app.retention.report import RemovalReason
from app.settings import Settings, SucceededCheckpoints
from app.storage.database import read_session, transaction
from app.storage.opening import get_store
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
    StoredCompletion,
    StoredResponse,
    Worker,
)
from app.tables.base import utc_now
from tests.integration.app.stored_artifacts import (
    LONG_AGO,
    STATE_BYTES,
    Make,
    add,
    add_checkpoint,
    add_events,
    add_log,
    finish,
    list_faults,
    make_old,
    publish,
    rows,
    run_collection,
    set_values,
    stored_keys,
)
from trainers.configs import EngineKind, Queue, StageKind


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
    assert len([event for event in rows(Event) if event.run_id == recent.id]) == 37
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


def test_stored_answers_go_when_their_time_is_over(settings: Settings) -> None:
    answer: dict[str, Any] = {"key_id": "", "model": "m", "deployment_id": "d"}
    for number in range(3):
        times: dict[str, Any] = {"expires_at": LONG_AGO if number else utc_now() + timedelta(days=1)}
        add(
            StoredCompletion(
                **answer, **times, id=f"c{number}", client_metadata={}, request="{}", completion="{}"
            )
        )
        add(StoredResponse(**answer, **times, id=f"r{number}", input_items="[]", response="{}", size_bytes=4))
    dry, _ = run_collection(settings, dry_run=True)
    report, _ = run_collection(settings)
    assert [(count.reason, count.count) for count in report.removed] == [(RemovalReason.record_expired, 4)]
    assert dry.removed == report.removed
    assert [row.id for table in (StoredCompletion, StoredResponse) for row in rows(table)] == ["c0", "r0"]


def test_of_the_versions_of_an_alias_the_newest_thousand_stay(settings: Settings) -> None:
    with transaction() as session:
        session.add_all(AliasVersion(alias="a", version=n, targets=[]) for n in range(1, 1004))
        session.add_all(AliasVersion(alias="b", version=n, targets=[]) for n in (1, 2))
    run_collection(settings)
    versions = [row.version for row in rows(AliasVersion) if row.alias == "a"]
    assert (min(versions), len(versions), len(rows(AliasVersion))) == (4, 1000, 1002)


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
